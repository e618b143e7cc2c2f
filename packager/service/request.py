"""What a deployment file is made from: the facts of a bundle, and what its operator wishes."""

import re
from dataclasses import dataclass
from typing import Final

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MIB
from edge_contract.manifest import TAR_TYPES, Manifest, Role
from packager.bundle import BundleSet
from packager.service.limits import (
    BODIES_BYTES,
    CPU_MILLIS_DEFAULT,
    DRAIN_S_DEFAULT,
    ENDING_S,
    IMAGE_CHARS_MAX,
    LINGER_S_DEFAULT,
    NAME_CHARS_MAX,
    OWN_BYTES,
    PEAK_GROWTH,
    PORT_DEFAULT,
    REPLICAS_MAX_DEFAULT,
    REPLICAS_MIN_DEFAULT,
    START_S_DEFAULT,
    STORE_OWN_BYTES,
    TAR_GROWTH,
    UTILIZATION_DEFAULT,
    WHEEL_GROWTH,
)

BUNDLE_PATH: Final = "/bundle"
WORK_PATH: Final = "/work"
TRUST_PATH: Final = "/etc/lighterman"
ROOT_FILE: Final = "image.root.json"
CA_FILE: Final = "ca.pem"

_LABEL: Final = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_URL: Final = re.compile(r"https?://[^\s\"'$`\\]+")
_PUBLISH: Final = re.compile(r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}:)?[0-9]{1,5}")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._-]+)+")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a bundle says about itself.

    Attributes:
        model: Name of the model.
        version: Its version.
        index: Digest of the bundle's index, which names every platform's manifest.
        manifests: Digest of the manifest by platform.
        load_peak_bytes: Largest measured load peak of the platforms; 0 when it was not measured.
        store_bytes: Upper bound of what the service writes to its folder.
        is_proved: Whether it has golden vectors on every platform.
        hardware_ids: Hardware it is signed for; empty for any.
        wants_pickle: Whether its scripts load pickles.
    """

    model: str
    version: int
    index: Digest
    manifests: dict[str, Digest]
    load_peak_bytes: int
    store_bytes: int
    is_proved: bool
    hardware_ids: tuple[str, ...] = ()
    wants_pickle: bool = False

    @classmethod
    def of(cls, bundles: BundleSet) -> "Facts":
        """Read them from a bundle."""
        return cls(
            model=bundles.model,
            version=bundles.version,
            index=bundles.index_digest,
            manifests={item.platform: item.descriptor.digest for item in bundles.bundles},
            load_peak_bytes=max(item.runtime.load_peak_bytes for item in bundles.bundles),
            store_bytes=max(_store_bytes(item.manifest) for item in bundles.bundles),
            is_proved=all(item.runtime.golden is not None for item in bundles.bundles),
            hardware_ids=bundles.hardware_ids,
            wants_pickle=any(item.runtime.allow_pickle for item in bundles.bundles),
        )

    @property
    def notes(self) -> dict[str, str]:
        """Annotations, or labels of a container, that say which bundle runs."""
        manifests = {
            f"io.lighterman.manifest.{platform.replace('/', '-')}": str(digest)
            for platform, digest in sorted(self.manifests.items())
        }
        return {
            "io.lighterman.model": self.model,
            "io.lighterman.version": str(self.version),
            "io.lighterman.bundle": str(self.index),
            **manifests,
        }


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """What an operator wishes. `check` has to have been called.

    Attributes:
        facts: The bundle.
        image: OCI image that runs `edge-agent serve`.
        name: Name of everything that is made; made from the model's when empty.
        namespace: Kubernetes namespace, or empty for that of whoever applies the file.
        registry: Base URL the bundle is pulled from; empty when the image holds it.
        bundle_path: Where the image holds it.
        token_secret: Name of the secret whose key `token` the registry wants, or empty.
        access_secret: Name of the secret whose key `token` clients have to present, or empty.
        root: Root metadata to verify signatures by, or empty.
        ca: Certificates to trust for the registry, PEM; the image's own when empty.
        hardware_id: The hardware it runs on, for bundles that are signed for certain hardware alone.
        memory_bytes: Memory the service may take at most; from the measured load peak when 0.
        cpu_millis: Processors it is promised, in thousandths.
        cpu_limit_millis: Processors it may take at most; 0 for no limit.
        replicas_min: Fewest pods.
        replicas_max: Most pods.
        utilization: Share of the promised processors, in hundredths, at which more pods are started.
        port: TCP port inside the container.
        publish: Address and port on the host, for Compose.
        start_s: Longest start.
        linger_s: Seconds of answering after the end was announced.
        drain_s: Seconds for requests that have begun.
        allow_pickle: Permit for pickles.
        allow_unproved: Permit to serve without golden vectors.
        has_network_policy: Whether to write a NetworkPolicy.
    """

    facts: Facts
    image: str
    name: str = ""
    namespace: str = ""
    registry: str = ""
    bundle_path: str = BUNDLE_PATH
    token_secret: str = ""
    access_secret: str = ""
    root: str = ""
    ca: str = ""
    hardware_id: str = ""
    memory_bytes: int = 0
    cpu_millis: int = CPU_MILLIS_DEFAULT
    cpu_limit_millis: int = 0
    replicas_min: int = REPLICAS_MIN_DEFAULT
    replicas_max: int = REPLICAS_MAX_DEFAULT
    utilization: int = UTILIZATION_DEFAULT
    port: int = PORT_DEFAULT
    publish: str = f"127.0.0.1:{PORT_DEFAULT}"
    start_s: int = START_S_DEFAULT
    linger_s: int = LINGER_S_DEFAULT
    drain_s: int = DRAIN_S_DEFAULT
    allow_pickle: bool = False
    allow_unproved: bool = False
    has_network_policy: bool = False

    def check(self) -> "ServiceRequest":
        """Require wishes that fit each other and the bundle; gives itself.

        Raises:
            EdgeError: `config.invalid`.
        """
        if not _IMAGE.fullmatch(self.image) or len(self.image) > IMAGE_CHARS_MAX:
            raise _invalid(f"--image {self.image[:80]!r} is no reference of an image")
        for what, name in (("--name", self.name), ("--namespace", self.namespace), *self._secrets):
            if name and (not _LABEL.fullmatch(name) or len(name) > NAME_CHARS_MAX):
                rule = f"lower-case letters, digits and '-', a letter first, at most {NAME_CHARS_MAX} characters"
                raise _invalid(f"{what} {name[:80]!r} is no name here", f"Use {rule}.")
        if not _PUBLISH.fullmatch(self.publish):
            raise _invalid(f"--publish {self.publish[:80]!r} is no address and port", "Write it like 127.0.0.1:8080.")
        if self.registry and not _URL.fullmatch(self.registry):
            raise _invalid(f"--registry {self.registry[:80]!r} is no URL")
        if not _PATH.fullmatch(self.bundle_path):
            raise _invalid(f"--bundle-path {self.bundle_path[:80]!r} is no absolute path")
        if (self.token_secret or self.root or self.ca) and not self.registry:
            raise _invalid("--secret, --root and --ca are for a bundle that is pulled", "Give --registry URL.")
        if self.replicas_max < self.replicas_min:
            raise _invalid(f"at most {self.replicas_max} replicas are fewer than at least {self.replicas_min}")
        if self.cpu_limit_millis and self.cpu_limit_millis < self.cpu_millis:
            raise _invalid("the limit of processors is below what is promised")
        self._require_accepted()
        if not self.memory_bytes and not self.facts.load_peak_bytes:
            raise _invalid(
                "nobody has measured how much memory loading the model takes",
                "Build the bundle with --measure-load-peak, or give --memory.",
            )
        if self.memory_bytes and self.memory_bytes < self.memory_request_bytes:
            need = self.memory_request_bytes // MIB
            raise _invalid(f"--memory is less than the {need} MiB that loading was measured to take")
        return self

    def _require_accepted(self) -> None:
        """Require that the service would not refuse the bundle."""
        if not self.facts.is_proved and not self.allow_unproved:
            raise _invalid(
                f"{self.facts.model}:{self.facts.version} has no golden vectors, so the service would refuse it",
                "Build it with --golden FILE, or give --allow-unproved.",
            )
        if self.facts.wants_pickle and not self.allow_pickle:
            raise _invalid(f"{self.facts.model}:{self.facts.version} loads pickles", "Permit it with --allow-pickle.")
        known = self.facts.hardware_ids
        if self.root and known and self.hardware_id not in known:
            raise _invalid(
                f"the bundle is for the hardware {', '.join(known)} alone", "Name that of the nodes with --hardware-id."
            )
        if self.hardware_id and not self.root:
            raise _invalid("--hardware-id is for signed bundles", "Give --root FILE, or leave it out.")

    @property
    def service_name(self) -> str:
        """The name of everything, a DNS label that begins with a letter."""
        if self.name:
            return self.name
        label = re.sub(r"[^a-z0-9]+", "-", self.facts.model)
        label = label if label[0].isalpha() else f"model-{label}"
        return label[:NAME_CHARS_MAX].rstrip("-")

    @property
    def memory_request_bytes(self) -> int:
        """Memory that is taken for sure, in whole mebibytes: the measured load peak and the supervising process."""
        if not self.facts.load_peak_bytes:
            return _whole(self.memory_bytes)
        return _whole(OWN_BYTES + self.facts.load_peak_bytes)

    @property
    def memory_limit_bytes(self) -> int:
        """Memory the service may take at most, in whole mebibytes."""
        if self.memory_bytes:
            return _whole(self.memory_bytes)
        times, over = PEAK_GROWTH
        return _whole(OWN_BYTES + self.facts.load_peak_bytes * times // over + BODIES_BYTES)

    @property
    def store_bytes(self) -> int:
        """Upper bound of what the service writes, in whole mebibytes."""
        return _whole(self.facts.store_bytes)

    @property
    def grace_s(self) -> int:
        """Seconds between SIGTERM and the moment it may be killed."""
        return self.linger_s + self.drain_s + ENDING_S

    @property
    def trust_files(self) -> dict[str, str]:
        """Files in `TRUST_PATH`, by name."""
        files = {ROOT_FILE: self.root, CA_FILE: self.ca}
        return {name: text for name, text in files.items() if text}

    @property
    def _secrets(self) -> tuple[tuple[str, str], ...]:
        return ("--secret", self.token_secret), ("--access-secret", self.access_secret)

    def arguments(self, token_file: str = "", access_token_file: str = "") -> list[str]:
        """Arguments of `edge-agent serve` in the container.

        Args:
            token_file: File with the registry's token, where it does not come in the environment.
            access_token_file: The same of the token that clients present.
        """
        facts = self.facts
        if self.registry:
            source = [f"--registry={self.registry}", f"--model={facts.model}", f"--version={facts.version}"]
            source += [f"--token-file={token_file}"] if token_file else []
            source += [f"--root={TRUST_PATH}/{ROOT_FILE}"] if self.root else []
            source += [f"--ca={TRUST_PATH}/{CA_FILE}"] if self.ca else []
            source += [f"--hardware-id={self.hardware_id}"] if self.hardware_id else []
        else:
            source = [self.bundle_path]
        source += [f"--access-token-file={access_token_file}"] if access_token_file else []
        source += ["--allow-pickle"] if self.allow_pickle else []
        source += ["--allow-unproved"] if self.allow_unproved else []
        return [
            *source,
            f"--digest={facts.index}",
            "--host=0.0.0.0",
            f"--port={self.port}",
            f"--work-dir={WORK_PATH}",
            f"--linger-seconds={self.linger_s}",
            f"--drain-seconds={self.drain_s}",
            "--json",
        ]


def _store_bytes(manifest: Manifest) -> int:
    total = STORE_OWN_BYTES
    for layer in manifest.blobs:
        growth = TAR_GROWTH if layer.media_type in TAR_TYPES else WHEEL_GROWTH if layer.role == Role.WHEEL else 1
        total += layer.size * growth
    return total


def _whole(count: int) -> int:
    """Rounded up to whole mebibytes."""
    return -(-count // MIB) * MIB


def _invalid(detail: str, hint: str = "") -> EdgeError:
    return EdgeError("config.invalid", detail, hint)
