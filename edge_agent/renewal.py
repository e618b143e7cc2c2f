"""Renewal of the device's certificate before it ends, with a new key where that is in a file.

The work is done by a process of its own, because it needs the key and `cryptography`. The old identity stays in force
until the new one is complete, and the registry takes the old key until the new one was first used: power may fail at
any instant, and whichever of the two is found then works.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from edge_agent import exchange, ports
from edge_agent import identity as ids
from edge_agent.identity import DeviceIdentity, LiveIdentity, load_identity
from edge_agent.limits import (
    CERTIFICATE_BYTES_MAX,
    ENROL_BYTES_MAX,
    RENEW_AFTER,
    RENEW_ANSWER_BYTES_MAX,
    RENEW_GAP_MS,
    RENEW_MS_MAX,
    RENEW_RETRY_MS_FIRST,
    RENEW_RETRY_MS_MAX,
    RENEW_SPREAD,
    ROOT_BYTES_MAX,
)
from edge_agent.store import durable
from edge_agent.store.lock import DataLock
from edge_agent.tokens import DeviceTokens
from edge_agent.transport import Origin
from edge_contract.codes import CODES
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object

PATH: Final = "/api/v1/devices/self/certificate"
_COMMAND: Final = (sys.executable, "-P", "-m", "edge_agent.renewal")
_KEPT: Final = (ids.DEVICE_CA, ids.BROKER_CA, ids.REGISTRY_CA, ids.IMAGE_ROOT, ids.DIRECTOR_ROOT)
_SPREAD_STEPS: Final = 2**16
_LOG: Final = logging.getLogger(__name__)


def _nobody() -> None:
    return


class CertificateRenewal:
    """Watches the certificate and has it renewed. Used by one thread (the metadata lane)."""

    def __init__(
        self,
        identity: LiveIdentity,
        data: Path,
        clock: ports.Clock,
        on_renewed: Callable[[], None] = _nobody,
        *,
        command: tuple[str, ...] = _COMMAND,
        timeout_ms: int = RENEW_MS_MAX,
    ) -> None:
        """Begin to watch.

        Args:
            identity: The identity as it is on disk.
            data: The data directory.
            clock: Times the waits between attempts.
            on_renewed: Called after a renewal, for example to reconnect the link.
            command: The program and arguments of the process that does it.
            timeout_ms: When that process is given up.
        """
        self._identity = identity
        self._data = data
        self._clock = clock
        self._on_renewed = on_renewed
        self._command = command
        self._timeout_ms = timeout_ms
        self._failures = 0
        self._not_before = 0  # monotonic
        self._error: EdgeError | None = None

    @property
    def error(self) -> EdgeError | None:
        """Why the last attempt failed, or none."""
        return self._error

    def duty(self, wall_ms: int) -> None:
        """Renew if it is due: what the metadata lane does after a refresh.

        Raises:
            EdgeError: As `renew`.
        """
        if self.due(wall_ms):
            self.renew()

    def due(self, wall_ms: int) -> bool:
        """Whether two thirds of the certificate's life are over, and no attempt was made too recently.

        Args:
            wall_ms: The time that this device trusts, milliseconds since 1970.
        """
        if self._clock.monotonic_ms() < self._not_before:
            return False
        return ids.is_half_exchanged(self._data) or wall_ms >= renewal_ms(self._identity.current())

    def renew(self) -> None:
        """Renew now; blocks within a bound. A failure is followed by a wait that doubles.

        Raises:
            EdgeError: `network.*`, `cloud.*`, `device.*`, `config.*`.
        """
        try:
            self._run()
        except EdgeError as error:
            wait_ms = min(RENEW_RETRY_MS_MAX, RENEW_RETRY_MS_FIRST << min(self._failures, 20))
            self._failures += 1
            self._not_before = self._clock.monotonic_ms() + wait_ms
            self._error = EdgeError(error.code, f"the certificate was not renewed: {error.detail}", error.hint)
            raise self._error from None
        self._error, self._failures = None, 0
        self._not_before = self._clock.monotonic_ms() + RENEW_GAP_MS
        _LOG.info("the certificate is renewed")
        self._on_renewed()

    def _run(self) -> None:
        try:
            done = subprocess.run(
                self._command,
                input=dump({"data": str(self._data.absolute())}),
                stdout=subprocess.PIPE,
                timeout=self._timeout_ms / 1000,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise EdgeError("network.timeout", f"it was not done within {self._timeout_ms} ms") from None
        except OSError as error:
            raise EdgeError("device.memory-short", f"it could not begin: {error}") from error
        try:
            answer = parse_object(done.stdout, "the answer", RENEW_ANSWER_BYTES_MAX)
        except ContractError as error:
            raise EdgeError("internal.bug", f"exit code {done.returncode}: {error.detail}") from None
        if "error" in answer:
            raise _error(answer["error"])


def renewal_ms(identity: DeviceIdentity) -> int:
    """When a certificate is to be renewed, milliseconds since 1970; devices of one day are spread by their keys."""
    life_ms = identity.valid.until_ms - identity.valid.from_ms
    place = int(identity.key.keyid[:4] or "0", 16)
    spread_ms = life_ms * RENEW_SPREAD[0] * place // (RENEW_SPREAD[1] * _SPREAD_STEPS)
    return identity.valid.from_ms + life_ms * RENEW_AFTER[0] // RENEW_AFTER[1] + spread_ms


def renew(data: Path, clock: ports.Clock) -> DeviceIdentity:
    """Renew in this process, which needs `cryptography`; the agent may run meanwhile.

    Args:
        data: The data directory.
        clock: Dates the token that asks.

    Returns:
        The identity that is stored now.

    Raises:
        EdgeError: `device.not-enrolled`, `device.busy` while somebody else renews, `network.*`, `cloud.*`, `device.*`.
    """
    from edge_agent import issuing
    from edge_agent.keys import open_key

    load_identity(data)  # nothing is made in a directory that is no device's
    with DataLock(data / ids.LOCK):
        exchange.finish_interrupted(data)
        old = load_identity(data)
        key = open_key(old.key.uri, old.folder)
        try:
            prepared = issuing.prepare_renewal(exchange.begin(data), key)
            body = dump(prepared.request())
            answer = _ask(old, DeviceTokens(old.device, key, clock, body), body)
        finally:
            key.close()
        try:
            fields = Fields(answer, "the registry's answer")
            certificates, valid = prepared.certificates(fields)
            certificates[ids.DEVICE_CA] = issuing.require_certificates(fields, "ca_pem")
        except ContractError as error:
            raise EdgeError("cloud.unavailable", f"the registry's answer cannot be used: {error.detail}") from None
        identity = replace(old, key=prepared.place(data / ids.FOLDER), valid=valid, folder=data / ids.FOLDER)
        files = {**_kept(old), **certificates, ids.ENROLMENT: identity.to_bytes()}
        exchange.complete(data, files)
        exchange.exchange(data)
    return identity


def _kept(old: DeviceIdentity) -> dict[str, bytes]:
    """The files that a renewal takes over."""
    found: dict[str, bytes] = {}
    for name in _KEPT:
        path = old.folder / name
        with durable.disk_errors(f"reading {path}"):
            content = durable.read_file(path, max(CERTIFICATE_BYTES_MAX, ROOT_BYTES_MAX))
        if content is not None:
            found[name] = content
    return found


def _ask(who: DeviceIdentity, tokens: DeviceTokens, body: bytes) -> JsonObject:
    origin = Origin(who.url, tokens, who.registry_ca)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    try:
        with origin.request("POST", PATH, headers=headers, body=body) as answer:
            if answer.status in (401, 403):
                raise answer.refusal()
            if answer.status not in (200, 201):
                raise answer.error()
            data = answer.read(ENROL_BYTES_MAX, "cloud.unavailable")
    finally:
        origin.close()
    try:
        return parse_object(data, "the registry's answer", ENROL_BYTES_MAX)
    except ContractError as error:
        raise EdgeError("cloud.unavailable", f"the registry's answer cannot be read: {error.detail}") from None


def _error(value: object) -> EdgeError:
    error = value if isinstance(value, dict) else {}
    code = str(error.get("code"))
    return EdgeError(code if code in CODES else "internal.bug", str(error.get("detail")), str(error.get("hint", "")))


def serve() -> None:
    """The process's own side: reads the work, renews, says how it went."""
    from edge_agent.shell.clock import SystemClock

    work = json.load(sys.stdin)
    try:
        identity = renew(Path(work["data"]), SystemClock())
        answer: JsonObject = {"keyid": identity.key.keyid, "until_ms": identity.valid.until_ms}
    except EdgeError as error:
        answer = {"error": error.to_json()}
    sys.stdout.buffer.write(dump(answer))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    serve()
