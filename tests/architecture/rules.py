"""The laws as tables. Whoever moves an adapter changes a line here and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

# --- arrows between packages -----------------------------------------------------------------------------------------

MAY_IMPORT: dict[str, frozenset[str]] = {
    "edge_contract": frozenset(),
    "edge_delta": frozenset({"edge_contract"}),
    "edge_agent": frozenset({"edge_contract", "edge_delta"}),
    "packager": frozenset({"edge_contract", "edge_delta", "cloud_registry"}),
    "cloud_registry": frozenset({"edge_contract"}),
    "device_sim": frozenset({"edge_contract", "edge_delta", "edge_agent", "packager", "cloud_registry"}),
}
"""Which of the other packages a package may import."""

DOORS: dict[tuple[str, str], str] = {("packager", "cloud_registry"): "cloud_registry.client"}
"""Where only one module of the other package may be used."""

# --- purity ----------------------------------------------------------------------------------------------------------

IMPURE_MODULES = frozenset(
    {
        "_thread",
        "asyncio",
        "concurrent",
        "fcntl",
        "fileinput",
        "getpass",
        "glob",
        "http",
        "importlib",
        "io",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "pathlib",
        "platform",
        "queue",
        "random",
        "sched",
        "secrets",
        "select",
        "selectors",
        "shelve",
        "shutil",
        "signal",
        "socket",
        "socketserver",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib",
        "uuid",
        "zoneinfo",
    }
)
"""Standard modules that bring a clock, chance, the disk, the network, threads, logs or the environment."""

PURE_PARTS = frozenset({"pathlib.PurePath", "pathlib.PurePosixPath", "urllib.parse"})
"""Pieces of those that compute and nothing else."""

IMPURE_CALLS = frozenset({"breakpoint", "eval", "exec", "input", "open", "print", "__import__"})

IMPURE_METHODS = frozenset({"now", "today", "utcnow"})
"""Methods of ``datetime`` and ``date`` that look at the clock."""

# --- direction inside a package --------------------------------------------------------------------------------------

LEAVES = frozenset({"limits", "errors", "version"})
"""Modules directly in a package that its core may use too; as pure as a core."""

RANKS: dict[str, int] = {"core": 0, "ports": 1, "cli": 3}
"""The rank of a part of a package; every other part is 2. A part imports only its own rank and lower ones."""

RANK_OF_OTHERS = 2

NEVER_IMPORTED_BY: dict[str, frozenset[str]] = {
    "cloud_registry.api": frozenset({"cloud_registry.adapters", "cloud_registry.collect", "cloud_registry.client"}),
    "cloud_registry.console": frozenset({"cloud_registry.adapters", "cloud_registry.collect", "cloud_registry.client"}),
    "edge_agent.shell": frozenset({"edge_agent.store", "edge_agent.trust", "edge_agent.link", "edge_agent.worker"}),
    "edge_agent.core": frozenset({"edge_agent.worker"}),
}
"""Arrows of one rank that would still be wrong: what is named first is not imported from what follows."""

SELF_SUFFICIENT: dict[str, frozenset[str]] = {"cloud_registry.client": frozenset({"httpx"})}
"""Modules that others install without their package's extra: the only third-party libraries they may import."""

# --- heavy libraries -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeavyLibrary:
    """Where a library may be imported.

    Attributes:
        name: The module's import name.
        places: Path patterns (``*`` crosses no folder, ``**`` does).
        files_max: In how many files of one package; the default is the one adapter.
        files_max_in: Exceptions, by package.
    """

    name: str
    places: tuple[str, ...]
    files_max: int = 1
    files_max_in: dict[str, int] = field(default_factory=dict)


ANY = 1_000

HEAVY_LIBRARIES: tuple[HeavyLibrary, ...] = (
    # inference
    HeavyLibrary("onnxruntime", ("edge_agent/worker/**", "packager/**", "device_sim/**")),
    HeavyLibrary("ai_edge_litert", ("edge_agent/worker/**", "packager/**", "device_sim/**")),
    HeavyLibrary(
        "numpy",
        ("edge_agent/worker/**", "edge_agent/inference_arrays.py", "edge_delta/**", "packager/**", "device_sim/**"),
        files_max=ANY,
    ),  # the data plane's common tongue
    HeavyLibrary("zstandard", ("edge_delta/**", "packager/delta/**"), files_max=3),
    HeavyLibrary("onnx", ("packager/**", "device_sim/**"), files_max=2),
    HeavyLibrary("safetensors", ("device_sim/**",)),
    HeavyLibrary("sklearn", ("device_sim/**",)),
    HeavyLibrary("scipy", ()),
    # the wire
    HeavyLibrary(
        "paho",
        (
            "edge_agent/link/**",
            "edge_agent/binding/connection.py",
            "cloud_registry/adapters/**",
            "cloud_registry/collect/**",
        ),
        files_max_in={"edge_agent": 2},  # the link to the cloud, and the binding, which is a process of its own
    ),
    HeavyLibrary("azure", ("edge_agent/link/**", "cloud_registry/adapters/**"), files_max=2),
    HeavyLibrary("proton", ("device_sim/iothub/**",), files_max=3),
    HeavyLibrary("mlflow", ("packager/mlflowread.py",)),
    HeavyLibrary("aiomqtt", ("device_sim/**",)),
    HeavyLibrary("iotcore", ("device_sim/**",)),
    HeavyLibrary("httptools", ("edge_agent/worker/**",)),
    HeavyLibrary(
        "httpx", ("cloud_registry/client/**", "cloud_registry/adapters/**", "packager/**", "device_sim/**"), 2
    ),
    HeavyLibrary("requests", ()),
    # the cloud
    HeavyLibrary("fastapi", ("cloud_registry/api/**", "cloud_registry/console/**"), files_max=ANY),
    HeavyLibrary(
        "starlette", ("cloud_registry/api/**", "cloud_registry/console/**", "device_sim/iothub/**"), files_max=ANY
    ),
    HeavyLibrary("uvicorn", ("cloud_registry/**", "device_sim/**")),
    HeavyLibrary("sqlalchemy", ("cloud_registry/adapters/**",), files_max=ANY),
    HeavyLibrary("alembic", ("cloud_registry/adapters/**",), files_max=ANY),
    HeavyLibrary("psycopg", ("cloud_registry/adapters/**",)),
    HeavyLibrary("duckdb", ("cloud_registry/adapters/**",)),
    HeavyLibrary("prometheus_client", ("cloud_registry/metrics.py",)),
    # trust
    HeavyLibrary(
        "tuf",
        ("edge_agent/trust/**", "cloud_registry/adapters/**", "packager/**", "device_sim/**"),
        files_max=4,
        files_max_in={"packager": 5},  # making, changing, delegating, signing and reading metadata
    ),
    HeavyLibrary(
        "securesystemslib",
        ("edge_agent/trust/**", "cloud_registry/adapters/**", "packager/**", "device_sim/**"),
        files_max=4,
    ),
    # the terminal
    HeavyLibrary("rich", ("packager/**", "device_sim/**"), files_max=3),
)

HEAVY_NAMES = frozenset(library.name for library in HEAVY_LIBRARIES)

LIGHT_STARTS: dict[str, frozenset[str]] = {
    "edge_contract": HEAVY_NAMES | {"click", "cryptography"},
    "edge_agent": HEAVY_NAMES,
    "edge_agent.core": HEAVY_NAMES | {"click", "cryptography"},
    "edge_agent.cli": HEAVY_NAMES,
    "edge_agent.binding.keeper": HEAVY_NAMES,  # the agent's side of the binding
    "edge_agent.binding.process": HEAVY_NAMES - {"paho"},
    "edge_agent.shell.runner": HEAVY_NAMES - {"paho", "tuf", "securesystemslib"},
    "cloud_registry.core": HEAVY_NAMES | {"click", "cryptography"},
    # httpx imports rich and zstandard by itself where they are installed.
    "cloud_registry.client": HEAVY_NAMES - {"httpx", "rich", "zstandard"},
    "cloud_registry.cli": HEAVY_NAMES,
    "packager.cli": HEAVY_NAMES - {"httpx", "rich", "zstandard"},
    "device_sim.cli": HEAVY_NAMES - {"rich"},
}
"""What importing a module must not load, directly or through others."""

# --- HTTP status codes -----------------------------------------------------------------------------------------------

STATUS_CODES = frozenset({*range(400, 419), 421, 422, 423, 424, 425, 426, 428, 429, 431, 451, *range(500, 509), 511})

STATUS_CODE_PLACES = ("cloud_registry/api/problems.py", "cloud_registry/api/oci*.py", "cloud_registry/**/limits.py")
"""Where the cloud may write the number of a failed answer; limits.py, because a limit may look like one."""

# --- words -----------------------------------------------------------------------------------------------------------

UNWANTED_WORDS: dict[str, str] = {
    "buffer": "record, journal or spool",
    "cache": "record, journal or spool",
    "campaign": "deployment or rollout",
    "checksum": "digest",
    "client": "link",
    "install": "stage or activate",
    "job": "deployment or rollout",
    "package": "bundle",
    "partition": "slot",
    "payload": "artifact, layer or content",
    "revision": "model version",
    "session": "link",
    "shadow": "desired or reported (twin)",
    "state": "phase or outcome",
    "status": "phase, outcome, verdict or report",
    "swap": "activate",
}
"""Words the glossary replaces, and by what. They are looked for in names that cross a wire."""

WIRE_NAMES_OF_OTHERS: frozenset[str] = frozenset({"payload", "payload_type", "payloadType"})  # DSSE
"""Names with such a word that a specification we follow prescribes."""

# --- size ------------------------------------------------------------------------------------------------------------

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 100

PLAIN_NUMBER_MAX = 1_000
"""Larger whole numbers in the contract and the cores have a name: they are limits."""
