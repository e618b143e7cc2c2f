"""The environment and command line of a worker process."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import edge_agent

_KEPT: Final = frozenset({"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"})
_KEPT_STARTS: Final = ("LC_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON")

_SET: Final = {
    # What a person installed for themselves is no part of a worker.
    "PYTHONNOUSERSITE": "1",
    # onnxruntime >= 1.29 phones home unless told otherwise before it is imported.
    "ORT_DISABLE_TELEMETRY": "1",
    # Large blocks come from the kernel and go back to it, so dropping a tensor shrinks the process.
    "MALLOC_MMAP_THRESHOLD_": "262144",
    # A worker's current folder is the bundle: a file named json.py in it is not the standard library's.
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}
_DEFAULTS: Final = {
    # numpy's BLAS would start a thread a core at import; the engines bring their own threads.
    "OPENBLAS_NUM_THREADS": "1",
}


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker sees of the agent's environment: no tokens, no addresses, only what a Python process needs."""
    kept = {name: value for name, value in environment.items() if name in _KEPT or name.startswith(_KEPT_STARTS)}
    # The package may be a checkout that is not installed.
    roots = [str(Path(edge_agent.__file__).resolve().parents[1])]
    if inherited := environment.get("PYTHONPATH"):
        roots.append(inherited)
    return {**_DEFAULTS, **kept, **_SET, "PYTHONPATH": os.pathsep.join(roots)}


def worker_command(module: str, slot: Path, control_fd: int, unix_fd: int, tcp_fd: int) -> list[str]:
    """The command line of a worker."""
    return [
        sys.executable,
        "-m",
        "edge_agent.worker",
        "--slot",
        str(slot),
        "--module",
        module,
        "--control-fd",
        str(control_fd),
        "--unix-fd",
        str(unix_fd),
        "--tcp-fd",
        str(tcp_fd),
    ]
