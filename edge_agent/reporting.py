"""Signs reports with the device's key and hands them to the link, on a thread of its own.

A signature may need a process to start, a PKCS#11 token or a TPM, and takes from a millisecond to seconds. The loop
must not wait for it, so it hands reports over here. Each report says everything that those before it said, so only the
newest waits; one that did not get through is not repeated, because the next one follows.
"""

import logging
import threading
from typing import Final, Protocol

from edge_agent import ports
from edge_agent.limits import KEY_CHANGES_MAX, REPORTING_STOP_MS_MAX
from edge_contract.errors import EdgeError
from edge_contract.signed import REPORT_TYPE, Envelope, signed_content

_LOG: Final = logging.getLogger(__name__)


class ReportSender(Protocol):
    """Where the loop leaves a report. Any thread, never blocks."""

    def send(self, report: bytes) -> None:
        """Take `edge_contract.twin.Report.to_bytes()`; it replaces one that still waits."""
        ...

    def link_changed(self, is_online: bool) -> None:
        """Sign nothing while the link is down."""
        ...

    def stop(self) -> None:
        """End, after the report that waits was handed over; bounded. Before the link is stopped."""
        ...


class SignedReports:
    """A `ReportSender` that signs. `send` and `link_changed` from any thread, `stop` once."""

    def __init__(self, signer: ports.DeviceSigner, link: ports.Link) -> None:
        """Begin; the thread starts with the first report.

        Args:
            signer: The device's key.
            link: Gets envelopes (`edge_contract.signed.Envelope`).
        """
        self._signer = signer
        self._link = link
        self._changed = threading.Condition()
        self._waiting: bytes | None = None
        self._is_offline = False
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._error: EdgeError | None = None

    @property
    def error(self) -> EdgeError | None:
        """Why the last report could not be signed, or none."""
        return self._error

    def send(self, report: bytes) -> None:
        """See `ReportSender.send`. While the link is known to be down nothing is kept."""
        with self._changed:
            if self._is_stopping or self._is_offline:
                return
            self._waiting = report
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
                self._thread.start()
            self._changed.notify()

    def link_changed(self, is_online: bool) -> None:
        """See `ReportSender.link_changed`. Who never calls this has every report signed."""
        with self._changed:
            self._is_offline = not is_online
            if self._is_offline:
                self._waiting = None

    def stop(self) -> None:
        """See `ReportSender.stop`."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(REPORTING_STOP_MS_MAX / 1000)

    def _run(self) -> None:
        while (report := self._next()) is not None:
            try:
                envelope = envelope_for(report, self._signer)
            except EdgeError as error:
                if self._error is None or self._error.code != error.code:
                    _LOG.warning("a report cannot be signed: %s", error)
                self._error = EdgeError(error.code, error.detail, error.hint)
                continue
            self._error = None
            self._link.send_report(envelope)

    def _next(self) -> bytes | None:
        with self._changed:
            while self._waiting is None and not self._is_stopping:
                self._changed.wait()
            report, self._waiting = self._waiting, None
            return report


def envelope_for(report: bytes, signer: ports.DeviceSigner) -> bytes:
    """Sign a report.

    Args:
        report: The bytes that the signature is over, and that the cloud will read.
        signer: The device's key.

    Returns:
        An `edge_contract.signed.Envelope` as it is sent.

    Raises:
        EdgeError: `device.key-unusable`.
    """
    content = signed_content(REPORT_TYPE, report)
    for _ in range(KEY_CHANGES_MAX):
        keyid = signer.keyid
        signature = signer.sign(content)
        if signer.keyid == keyid:  # else the key was renewed meanwhile, and nobody knows which one signed
            return Envelope(REPORT_TYPE, report, keyid, signature).to_bytes()
    raise EdgeError("device.key-unusable", "the device's key changes at every look")
