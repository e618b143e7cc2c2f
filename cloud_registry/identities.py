"""What the cloud's parts need from each other about the identities of devices, as Protocols; rules as in `ports`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloud_registry.core.records import DeviceChange
from edge_contract.digest import Digest


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A device's public key.

    Attributes:
        keyid: SHA-256 of its SubjectPublicKeyInfo (DER), 64 hexadecimal digits.
        pem: SubjectPublicKeyInfo in PEM; Ed25519 or ECDSA P-256.
    """

    keyid: str
    pem: str


@dataclass(frozen=True, slots=True)
class EnrolledKey:
    """A key that may sign for a device.

    Attributes:
        device: Name of the device.
        keyid: As `DeviceKey.keyid`.
        pem: As `DeviceKey.pem`.
        is_next: Whether it is the new key of a renewal that has not been used yet.
        is_revoked: Whether the device's identity was revoked.
        certificate_until_ms: End of the newest certificate.
    """

    device: str
    keyid: str
    pem: str
    is_next: bool
    is_revoked: bool
    certificate_until_ms: int


class CertificateAuthority(Protocol):
    """Signs the certificates by which devices show the broker who they are."""

    @property
    def device_life_ms(self) -> int:
        """How long a device's certificate is good."""
        ...

    def check_request(self, csr_pem: str) -> DeviceKey:
        """Verify a certificate request's own signature and its kind of key; its public key.

        Raises:
            EdgeError: `cloud.bad-request`.
        """
        ...

    def issue(self, identity: str, csr_pem: str, until_ms: int) -> str:
        """A certificate (PEM) for the request's key with an enrolment's identity as common name.

        Args:
            identity: As `core.identity.identity_name` makes it.
            csr_pem: The request; nothing of it but its key is taken over.
            until_ms: When the certificate ends.

        Raises:
            EdgeError: `cloud.bad-request`, `cloud.name-invalid`.
        """
        ...

    def issue_server(self, names: Sequence[str]) -> tuple[str, str]:
        """A new key and a server certificate for these host names and addresses: (key PEM, certificate PEM).

        For the broker, so that devices need trust one authority alone. The key is kept nowhere here.

        Raises:
            EdgeError: `config.invalid` for no names, or one that is neither a host name nor an address.
        """
        ...

    def ca_pem(self) -> str:
        """The authority's own certificate (PEM)."""
        ...


@dataclass(frozen=True, slots=True)
class EnrolledDevice:
    """The result of a redeemed enrolment token.

    Attributes:
        device: Name the token was made for.
        identity: Name of this enrolment, for its certificates and the broker.
        former: Identity that it takes the place of, or none.
    """

    device: str
    identity: str
    former: str | None = None


class EnrolmentStore(Protocol):
    """Spends one-time enrolment tokens, and keeps the identities that devices get for them."""

    def redeem(
        self, token: str, key: DeviceKey, platform: str, hardware_id: str, certificate_until_ms: int
    ) -> EnrolledDevice:
        """Spend a token and enrol its device, in one transaction, durable on return.

        Every token gives an identity of its own; the keys of a former one are forgotten. The first use binds the token
        to the key of the certificate request. The same key may redeem it again until it expires (an answer may get
        lost), and gets the same identity; any other key is refused, and so is everybody once the identity was revoked
        or has been replaced.

        Args:
            token: The one-time token.
            key: The request's public key.
            platform: `os/architecture[/variant]`, checked here.
            hardware_id: At most 128 characters, may be empty.
            certificate_until_ms: End of the certificate it will get.

        Raises:
            EdgeError: `cloud.token-spent` (unknown, used, or expired), `cloud.name-invalid`.
        """
        ...

    def renew(self, device: str, key: DeviceKey, certificate_until_ms: int) -> str:
        """Note a new certificate of a device, for its key or a new one; gives the identity, which stays the same.

        A new key may sign from now on; the old one may until the first request that the new one signed. A second
        renewal before that replaces the new key of the first.

        Raises:
            EdgeError: `cloud.not-found` for a device that is gone, `cloud.device-revoked`.
        """
        ...

    def revoke(self, device: str, by: str) -> str:
        """End a device's identity and its enrolment tokens; gives the identity. Idempotent, durable on return.

        Raises:
            EdgeError: `cloud.not-found`.
        """
        ...

    def identities(self) -> Mapping[str, str]:
        """Name of the device by identity, for all whose identity was not revoked."""
        ...

    def find_keys(self, keyid: str) -> Sequence[EnrolledKey]:
        """The enrolled keys with this identifier, those of revoked devices too."""
        ...

    def promote(self, device: str, keyid: str) -> None:
        """The new key of a renewal was used: forget the old one. Nothing happens if it was before."""
        ...

    def history(self, device: str) -> Sequence[DeviceChange]:
        """What happened to a device's identity, oldest first; that of a deleted device too."""
        ...


@dataclass(frozen=True, slots=True)
class BundleGrant:
    """A bundle that a device may read.

    Attributes:
        repository: Where it is.
        manifest: Its manifest; the blobs that this lists go with it.
        index: The index that lists the manifest.
        deltas: Deltas that make blobs of the bundle.
    """

    repository: str
    manifest: Digest
    index: Digest
    deltas: frozenset[Digest] = frozenset()


class ContentRights(Protocol):
    """Which content belongs to which device."""

    def bundles_of(self, device: str) -> Sequence[BundleGrant]:
        """What is assigned to a device now, and of what was ever assigned to it what it last reported.

        Reported are the bundles that are live, that it would roll back to, and that it confirmed last, so that a device
        can heal what its disk damaged.
        """
        ...
