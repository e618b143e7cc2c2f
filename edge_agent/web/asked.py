"""What `edge-agent serve` is asked for, checked as a whole: no option is taken and then ignored."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_agent.web.limits import DRAIN_S_DEFAULT
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import CPUS_MAX, WORKER_BYTES_MAX
from edge_contract.terms import PERMILLE, Resources

_SIZE: Final = re.compile(r"(\d{1,15})(|K|M|G|T|Ki|Mi|Gi|Ti)B?", re.IGNORECASE)
_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_PROVIDER: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
_CPUS: Final = re.compile(r"\d{1,4}(?:\.\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Asked:
    """One service, as its command line describes it.

    Attributes:
        bundle: Folder of the OCI layout that holds the bundle, or none when it comes from a registry.
        registry: Base URL of a registry, or empty.
        model: Name of the model the bundle has to be of; empty for any.
        version: Version it has to be, 0 for any.
        token: Bearer token for the registry, or empty.
        access_token: What clients over TCP have to present; empty lets in whoever can connect.
        ca: Certificates to trust for https; the system's when none.
        root: Root metadata of the image repository to trust, or none.
        metadata: Folder or URL of the image repository's metadata; empty for the registry's own.
        digest: Digest that the bundle's index or manifest has to have, or none.
        is_unsigned: Whether to serve a bundle that nobody vouches for.
        is_unproved: Whether to serve a bundle without golden vectors.
        hardware_id: Which hardware this is, for bundles that are for certain hardware alone.
        host: Address to listen on.
        port: TCP port, 0 for any that is free.
        unix: Path of a unix socket to answer on as well, or none.
        work_dir: Folder for everything that is written; the system's folder for temporary files when none.
        linger_s: How long to go on answering after being told to end, seconds.
        drain_s: How long what has begun may take to finish then, seconds.
        policy: What the worker may do and use.
        providers: Execution providers of onnxruntime that the bundle may ask for; the CPU's always may.
    """

    bundle: Path | None = None
    registry: str = ""
    model: str = ""
    version: int = 0
    token: str = ""
    ca: Path | None = None
    root: Path | None = None
    metadata: str = ""
    digest: Digest | None = None
    is_unsigned: bool = False
    is_unproved: bool = False
    hardware_id: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
    unix: Path | None = None
    work_dir: Path | None = None
    linger_s: int = 0
    drain_s: int = DRAIN_S_DEFAULT
    policy: Policy = field(default_factory=Policy)
    providers: tuple[str, ...] = ()
    access_token: str = ""

    def check(self) -> "Asked":
        """Require options that belong together; gives itself.

        Raises:
            EdgeError: `config.invalid`.
        """
        if self.bundle is None and not (self.registry and self.model and self.version):
            raise _invalid(
                "no bundle was named",
                "Give the folder of a bundle (packager build --out DIR), or --registry URL --model NAME --version N.",
            )
        is_verified = self.root is not None or self.digest is not None
        if not is_verified and not self.is_unsigned:
            raise _invalid(
                "nothing says which bundle is genuine",
                "Give --root FILE (signed metadata) or --digest sha256:… (a digest from somebody you trust); "
                "--insecure-unsigned serves what nobody vouches for.",
            )
        if is_verified and self.is_unsigned:
            raise _invalid("--insecure-unsigned contradicts --root and --digest", "Leave it out.")
        if self.metadata and self.root is None:
            raise _invalid("--metadata needs --root, the root metadata to verify it by")
        if self.root is not None and not self.metadata and not self.registry:
            raise _invalid(
                "--root needs the image repository's metadata",
                "Give --registry URL, or --metadata with a folder or URL that holds timestamp.json.",
            )
        if self.bundle is not None and self.registry and (self.root is None or self.metadata):
            raise _invalid(
                "two sources of the bundle: a folder and a registry",
                "Leave out --registry; beside a folder it is only good for --root, without --metadata.",
            )
        if not all(_PROVIDER.fullmatch(name) for name in self.providers):
            raise _invalid("--provider takes names like CUDAExecutionProvider")
        if not self.registry and (self.token or self.ca is not None):
            raise _invalid("a token or --ca was given, and no --registry to use it with")
        return self


def parse_bytes(text: str) -> int:
    """An amount of memory as people write it: `512M`, `1.5` is not one, `2Gi`, `300000000`.

    Raises:
        EdgeError: `config.invalid`.
    """
    found = _SIZE.fullmatch(text.strip())
    count = int(found[1]) * _UNITS[found[2].lower()] if found else 0
    if not 0 < count <= WORKER_BYTES_MAX:
        raise _invalid(f"--memory {text[:40]!r} is no amount of memory", "Write it like 512Mi, 2Gi or 300000000.")
    return count


def parse_cpus(text: str) -> int:
    """Processors as people write them (`0.5`, `2`), in thousandths.

    Raises:
        EdgeError: `config.invalid`.
    """
    permille = round(float(text) * PERMILLE) if _CPUS.fullmatch(text.strip()) else 0
    if not 0 < permille <= CPUS_MAX * PERMILLE:
        raise _invalid(f"--cpus {text[:40]!r} is no number of processors", "Write it like 0.5 or 2.")
    return permille


def make_policy(allow_pickle: bool, memory: str | None, cpus: str | None) -> Policy:
    """The policy that a person who runs a service states in the director's place.

    Raises:
        EdgeError: `config.invalid`.
    """
    resources = Resources(
        memory_bytes_max=0 if memory is None else parse_bytes(memory),
        cpu_permille_max=0 if cpus is None else parse_cpus(cpus),
    )
    # There is nowhere to send samples to.
    return Policy(sampling_ratio=0.0, allow_pickle=allow_pickle, resources=resources)


def _invalid(detail: str, hint: str = "") -> EdgeError:
    return EdgeError("config.invalid", detail, hint)
