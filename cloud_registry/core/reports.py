"""Opens reports: first the signature, then the same bytes. Pure; the signature is checked by whoever calls."""

import re
from collections.abc import Callable, Mapping
from typing import Final

from edge_contract.errors import ContractError, EdgeError
from edge_contract.signed import REPORT_TYPE, Envelope
from edge_contract.twin import Report

UNSIGNED: Final = "trust.report-unsigned"
REPLAYED: Final = "trust.report-replayed"

Order = tuple[str, int]
"""(boot, number): the greater one is the newer report of an enrolment."""

_BOOT: Final = re.compile(r"[0-9a-f]{16}")
# As JSON has to write it. Some databases cannot store it in any text, and would refuse the report for ever.
_NUL: Final = b"\\u0000"
_NUMBER_MAX: Final = 2**63 - 1


def open_report(
    content: bytes, device: str, keys: Mapping[str, str], is_signed: Callable[[Envelope, str], bool]
) -> Report:
    """Read a message that claims to be a report of a device.

    Args:
        content: The message.
        device: Whose topic it came on.
        keys: PEM of the device's keys by key id.
        is_signed: Whether an envelope's signature is one of a key.

    Raises:
        EdgeError: `trust.report-unsigned`; `artifact.*` for what is signed and yet no report of this device.
    """
    try:
        envelope = Envelope.parse(content)
    except ContractError as error:
        raise EdgeError(UNSIGNED, f"the message is no signed report: {error.detail}") from None
    if envelope.payload_type != REPORT_TYPE:
        raise EdgeError(UNSIGNED, f"a {envelope.payload_type[:80]!r} was signed, no report")
    pem = keys.get(envelope.keyid)
    if pem is None:
        raise EdgeError(UNSIGNED, f"{envelope.keyid[:64]!r} is not a key of {device}")
    if not is_signed(envelope, pem):
        raise EdgeError(UNSIGNED, f"the signature is not one of {device}'s key")
    report = Report.parse(envelope.payload)
    if _NUL in envelope.payload:
        raise ContractError("artifact.document-invalid", "a report holds the character U+0000")
    if not _BOOT.fullmatch(report.boot) or not 0 <= report.number <= _NUMBER_MAX:
        raise ContractError("artifact.document-invalid", "a report names its boot with 16 hexadecimal digits")
    if report.device != device:
        raise ContractError(
            "artifact.document-invalid", f"a report of {report.device!r} came on the topic of {device!r}"
        )
    return report


def require_newer(report: Report, newest: Order | None) -> Order:
    """Require that a report is newer than the newest one that was taken; gives its own place in the order.

    Raises:
        EdgeError: `trust.report-replayed`.
    """
    order = (report.boot, report.number)
    if newest is not None and order <= newest:
        what = "the newest report came a second time" if order == newest else "a newer report was taken before"
        raise EdgeError(REPLAYED, f"{what} (boot {report.boot}, number {report.number})")
    return order
