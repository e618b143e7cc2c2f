"""What the cloud may ask of a running agent at once: the operations behind an IoT hub's direct methods.

Nothing here brings bytes onto the device or a bundle to life that signed metadata did not: at worst somebody with
rights on the hub delays updates, goes back to the fallback, or reads logs. Which methods may be called is the device
owner's to say (`[iothub] methods`).
"""

import logging
import re
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.shell.limits import (
    CONTROL_MS,
    LOG_ANSWER_CHARS_MAX,
    LOG_LINE_CHARS_MAX,
    LOG_LINES_KEPT,
    LOG_SOURCES_MAX,
    LOG_TAIL_BYTES,
)
from edge_agent.shell.runner import Runner
from edge_contract.errors import EdgeError
from edge_contract.hub import HubSettings
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.names import model_name

_AGENT: Final = "agent"
_BINDING: Final = "binding"
_SECRETS: Final = re.compile(
    r"((?:Shared|Account)?_?Access_?Key[\"']?\s*[=:]\s*[\"']?|AccountKey\s*=\s*|SharedAccessSignature[ =]|sig=|Bearer "
    r"|(?:password|passphrase|passwd|secret|token|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)[^\s;&\"']+",
    re.IGNORECASE,
)
_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RecentLog(logging.Handler):
    """Keeps the agent's last log lines in memory. Any thread."""

    def __init__(self, lines_max: int = LOG_LINES_KEPT) -> None:
        """Keep so many lines."""
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self._lines: deque[str] = deque(maxlen=lines_max)
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        try:
            line = self.format(record)[:LOG_LINE_CHARS_MAX]
        except Exception:  # noqa: BLE001 - as every handler of the standard library does
            self.handleError(record)
            return
        with self._guard:
            self._lines.append(line)

    def text(self) -> str:
        """All that is kept, oldest first."""
        with self._guard:
            return "\n".join(self._lines)


class RunnerOperations:
    """Implements `ports.Operations` over the loop. Any thread; each call is bounded by the loop's own bound."""

    def __init__(self, runner: Callable[[], Runner], run: Path, recent: RecentLog, log_level: str) -> None:
        """Describe whom to ask.

        Args:
            runner: The loop; asked for when it is needed, because the link is made before it.
            run: The agent's run directory, which holds the workers' logs.
            recent: The agent's own log.
            log_level: Of the device's configuration, which holds where settings name none.
        """
        self._runner = runner
        self._run = run
        self._recent = recent
        self._log_level = log_level

    def perform(self, method: str, arguments: JsonObject) -> JsonObject:
        """See `ports.Operations.perform`."""
        fields = Fields(arguments, "the method's arguments", "config.invalid")
        runner = self._runner()
        if method == "ping":
            return {"alive": True, **runner.call(lambda: _few(runner.status()), CONTROL_MS / 1000)}
        if method == "report":
            runner.call(runner.ask_report, CONTROL_MS / 1000)
            return {"status": runner.call(runner.status, CONTROL_MS / 1000)}
        if method == "rollback":
            module = fields.text("module")
            return {"fallback": str(runner.call(lambda: runner.ask_rollback(module), CONTROL_MS / 1000))}
        if method in ("hold", "resume"):
            module = fields.text("module", "")
            ask = runner.ask_hold if method == "hold" else runner.ask_resume
            runner.call(lambda: ask(module), CONTROL_MS / 1000)
            return {"held": method == "hold", "module": module or None}
        if method == "collect-logs":
            return {"logs": self._logs(fields.text("source", ""))}
        raise EdgeError("config.invalid", f"there is no method {method[:80]!r}")

    def set(self, settings: HubSettings) -> None:
        """See `ports.Operations.set`. Does not wait for the loop."""
        level = (settings.log_level or self._log_level).upper()
        logging.getLogger("edge_agent").setLevel(level)
        self._runner().set_periods_soon(settings.poll_ms, settings.report_ms)

    def _logs(self, source: str) -> JsonObject:
        """The ends of logs, without what looks like a secret."""
        names = [source] if source else [_AGENT, _BINDING, *sorted(self._workers())][:LOG_SOURCES_MAX]
        each = LOG_ANSWER_CHARS_MAX // len(names)
        found: JsonObject = {}
        for name in names:
            text = self._recent.text() if name == _AGENT else self._tail(name)
            shown = _SECRETS.sub(r"\1***", text)[-each:]
            # JSON writes a control character in six bytes, and the hub's bound is in bytes.
            found[name] = "".join(sign if sign >= " " or sign in "\n\t" else "?" for sign in shown)
        return found

    def _workers(self) -> list[str]:
        return [path.stem for path in self._run.glob("*.log") if path.stem != _BINDING]

    def _tail(self, name: str) -> str:
        if name != _BINDING:
            model_name(name)  # so that it is a file of this folder
        path = self._run / f"{name}.log"
        try:
            with path.open("rb") as file:
                begin = max(0, path.stat().st_size - LOG_TAIL_BYTES)
                file.seek(begin)
                text = file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
                # Half a line may be a secret whose name was cut off.
                return text.partition("\n")[2] if begin else text
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise EdgeError("device.disk-error", f"the log of {name} cannot be read: {error.strerror}") from None


def _few(status: JsonObject) -> JsonObject:
    return {key: status[key] for key in ("device", "boot", "agent_version", "platform", "director_version", "held")}
