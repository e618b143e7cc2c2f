"""Desired and reported: the nudge from the cloud and a device's report. Both are hints.

Only signed metadata decides.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from edge_contract.codes import CODES
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.limits import DETAIL_CHARS_MAX, MODULES_MAX, NUDGE_BYTES_MAX, REPORT_BYTES_MAX
from edge_contract.names import device_name, model_name, platform_name
from edge_contract.phases import Outcome, Phase
from edge_contract.terms import Agreement

NUDGE_SCHEMA: Final = "lighterman.nudge/1"
REPORT_SCHEMA: Final = "lighterman.report/1"
_CODE: Final = "artifact.document-invalid"
WORD_CHARS_MAX: Final = 32  # of a phase or an outcome


@dataclass(frozen=True, slots=True)
class Nudge:
    """Tells a device that its director metadata has (at least) this version. Carries no instruction.

    Attributes:
        director_version: Version of the device's director targets metadata.
    """

    director_version: int

    def to_bytes(self) -> bytes:
        """The message."""
        return dump({"schema": NUDGE_SCHEMA, "director_version": self.director_version})

    @classmethod
    def parse(cls, data: bytes) -> "Nudge":
        """Read a message.

        Raises:
            ContractError: with an `artifact.` code.
        """
        fields = Fields(parse_object(data, "nudge", NUDGE_BYTES_MAX), "nudge", _CODE)
        fields.schema(NUDGE_SCHEMA)
        return cls(fields.integer("director_version"))


@dataclass(frozen=True, slots=True)
class ReportedError:
    """An error as a report carries it.

    Attributes:
        code: Stable code.
        detail: Redacted, at most `DETAIL_CHARS_MAX` characters.
        phase: Phase the module was in; a plain text when it is one of a newer device.
        attempt: Number of the attempt, from 1.
    """

    code: str
    detail: str
    phase: Phase | str
    attempt: int

    @classmethod
    def of(cls, code: str, detail: str, phase: Phase | str, attempt: int = 1) -> "ReportedError":
        """An error whose detail is cut to what every reader accepts."""
        return cls(code, detail[:DETAIL_CHARS_MAX], phase, attempt)

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {"code": self.code, "detail": self.detail, "phase": str(self.phase), "attempt": self.attempt}

    @classmethod
    def from_json(cls, value: Any) -> "ReportedError":
        """Read what `to_json` wrote; a code of a newer device is kept as it is.

        Raises:
            ContractError: `artifact.document-invalid`.
        """
        fields = Fields(value, "reported error", _CODE)
        return cls(
            code=fields.text("code", chars_max=64),
            detail=fields.text("detail", chars_max=DETAIL_CHARS_MAX),
            phase=_phase(fields),
            attempt=fields.integer("attempt"),
        )

    @property
    def is_known(self) -> bool:
        """Whether this version of the contract knows the code."""
        return self.code in CODES


@dataclass(frozen=True, slots=True)
class ReportedDeployment:
    """The latest deployment of a module and how it stands or ended.

    Attributes:
        deployment: Identifier from the assignment.
        manifest: The bundle it installs.
        outcome: How it ended; none while it runs, and for an outcome of a newer device, which nobody here can judge.
        error: Why it was refused or rolled back, or what it waits for.
    """

    deployment: str
    manifest: Digest
    outcome: Outcome | None = None
    error: ReportedError | None = None

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "deployment": self.deployment,
            "manifest": str(self.manifest),
            "outcome": None if self.outcome is None else str(self.outcome),
            "error": None if self.error is None else self.error.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any) -> "ReportedDeployment":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `artifact.document-invalid` or `artifact.digest-invalid`.
        """
        fields = Fields(value, "reported deployment", _CODE)
        outcome, error = fields.take("outcome"), fields.take("error")
        return cls(
            deployment=fields.text("deployment", chars_max=128),
            manifest=Digest(fields.text("manifest")),
            outcome=None if outcome is None else _outcome(fields.text("outcome", chars_max=WORD_CHARS_MAX)),
            error=None if error is None else ReportedError.from_json(error),
        )


@dataclass(frozen=True, slots=True)
class ReportedHealth:
    """What the live bundle's probation was judged by, when it was last looked at.

    Attributes:
        requests: Requests answered, good or bad.
        failures: Those that failed by the model's fault.
        nonfinite: Answers with NaN or infinity for finite inputs.
        p50_us: Median latency in microseconds, 0 when unknown.
        p99_us: 99th percentile.
        before_p50_us: Median latency of the bundle that was live before, 0 when unknown.
        before_p99_us: Its 99th percentile.
    """

    requests: int = 0
    failures: int = 0
    nonfinite: int = 0
    p50_us: int = 0
    p99_us: int = 0
    before_p50_us: int = 0
    before_p99_us: int = 0

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "requests": self.requests,
            "failures": self.failures,
            "nonfinite": self.nonfinite,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "before_p50_us": self.before_p50_us,
            "before_p99_us": self.before_p99_us,
        }

    @classmethod
    def from_json(cls, value: Any) -> "ReportedHealth":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `artifact.document-invalid`.
        """
        fields = Fields(value, "reported health", _CODE)
        return cls(
            requests=fields.integer("requests", 0),
            failures=fields.integer("failures", 0),
            nonfinite=fields.integer("nonfinite", 0),
            p50_us=fields.integer("p50_us", 0),
            p99_us=fields.integer("p99_us", 0),
            before_p50_us=fields.integer("before_p50_us", 0),
            before_p99_us=fields.integer("before_p99_us", 0),
        )


@dataclass(frozen=True, slots=True)
class ReportedModule:
    """One module as it is.

    Attributes:
        phase: Where the update machine is; a plain text when it is a phase of a newer device.
        live: Digest of the bundle that answers predictions, or none.
        model: Name of the live model, empty when none.
        version: Its version, 0 when none.
        golden: Digest of the outputs the live worker gave on its golden vectors, or none.
        fallback: Digest of the bundle a rollback would make live, or none.
        serving: Whether the worker answers right now.
        deployment: The latest deployment, or none.
        answering: Digest of the bundle that answered the agent's last probe of the module's own socket, or none. A
            deployment is confirmed only when this is its manifest; a later change of it is a revert.
        held: Whether an operator holds updates of this module back.
        gap_ms: How long nobody answered in the last activation, 0 when workers overlapped.
        refused: A deployment that signed metadata asked for and this device did not take, or none.
        error: What is wrong with the live bundle, for example damage on disk that is being healed, or none.
        health: What probation found of the live bundle, or none before it was looked at.
        trial: What the last trial of a candidate found, or none.
    """

    phase: Phase | str
    live: Digest | None = None
    model: str = ""
    version: int = 0
    golden: Digest | None = None
    fallback: Digest | None = None
    serving: bool = False
    deployment: ReportedDeployment | None = None
    answering: Digest | None = None
    held: bool = False
    gap_ms: int = 0
    refused: ReportedDeployment | None = None
    error: ReportedError | None = None
    health: ReportedHealth | None = None
    trial: Agreement | None = None

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "phase": str(self.phase),
            "live": _text(self.live),
            "model": self.model,
            "version": self.version,
            "golden": _text(self.golden),
            "fallback": _text(self.fallback),
            "serving": self.serving,
            "deployment": None if self.deployment is None else self.deployment.to_json(),
            "answering": _text(self.answering),
            "held": self.held,
            "gap_ms": self.gap_ms,
            "refused": None if self.refused is None else self.refused.to_json(),
            "error": None if self.error is None else self.error.to_json(),
            "health": None if self.health is None else self.health.to_json(),
            "trial": None if self.trial is None else self.trial.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any) -> "ReportedModule":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `artifact.document-invalid` or `artifact.digest-invalid`.
        """
        fields = Fields(value, "reported module", _CODE)
        deployment, refused, error = fields.take("deployment"), fields.take("refused"), fields.take("error")
        health, trial = fields.take("health"), fields.take("trial")
        return cls(
            phase=_phase(fields),
            live=_digest(fields.take("live")),
            model=fields.text("model", "", chars_max=64),
            version=fields.integer("version", 0),
            golden=_digest(fields.take("golden")),
            fallback=_digest(fields.take("fallback")),
            serving=fields.flag("serving", False),
            deployment=None if deployment is None else ReportedDeployment.from_json(deployment),
            answering=_digest(fields.take("answering")),
            held=fields.flag("held", False),
            gap_ms=fields.integer("gap_ms", 0),
            refused=None if refused is None else ReportedDeployment.from_json(refused),
            error=None if error is None else ReportedError.from_json(error),
            health=None if health is None else ReportedHealth.from_json(health),
            trial=None if trial is None else Agreement.from_json(trial),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a device says of itself. It travels in a `signed.Envelope`; the greatest (boot, number) is the newest.

    Attributes:
        device: Name of the device.
        boot: Identifier of this run of the agent, 16 hexadecimal digits; later runs have greater ones.
        number: Counts up from 1 within a boot.
        sent_ms: Device's wall clock, milliseconds since 1970; may be wrong.
        platform: `os/architecture[/variant]`.
        agent_version: Version of the agent.
        director_version: Version of the newest director targets it trusts, 0 when none.
        modules: Modules by name.
        error: An error that belongs to no module, for example an untrusted clock.
        bytes_fetched: Bytes of blobs pulled since this boot, deltas included.
        bytes_saved: Bytes that needed no pulling since this boot because deltas made them.
        clock_trusted: False when the clock is behind a time known to have passed; metadata is then judged by that.
    """

    device: str
    boot: str
    number: int
    sent_ms: int
    platform: str
    agent_version: str
    director_version: int = 0
    modules: dict[str, ReportedModule] = field(default_factory=dict)
    error: ReportedError | None = None
    bytes_fetched: int = 0
    bytes_saved: int = 0
    clock_trusted: bool = True

    def to_bytes(self) -> bytes:
        """The message."""
        return dump(
            {
                "schema": REPORT_SCHEMA,
                "device": self.device,
                "boot": self.boot,
                "number": self.number,
                "sent_ms": self.sent_ms,
                "platform": self.platform,
                "agent_version": self.agent_version,
                "director_version": self.director_version,
                "modules": {name: module.to_json() for name, module in self.modules.items()},
                "error": None if self.error is None else self.error.to_json(),
                "bytes_fetched": self.bytes_fetched,
                "bytes_saved": self.bytes_saved,
                "clock_trusted": self.clock_trusted,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "Report":
        """Read a message; fields of a newer device are ignored.

        Raises:
            ContractError: with an `artifact.` or `cloud.name-invalid` code.
        """
        fields = Fields(parse_object(data, "report", REPORT_BYTES_MAX), "report", _CODE)
        fields.schema(REPORT_SCHEMA)
        modules = Fields(fields.take("modules", {}), "modules", _CODE)
        names = list(fields.take("modules", {}))
        if len(names) > MODULES_MAX:
            raise ContractError(_CODE, f"a report names at most {MODULES_MAX} modules")
        error = fields.take("error")
        return cls(
            device=device_name(fields.text("device")),
            boot=fields.text("boot", chars_max=32),
            number=fields.integer("number"),
            sent_ms=fields.integer("sent_ms"),
            platform=platform_name(fields.text("platform")),
            agent_version=fields.text("agent_version", chars_max=64),
            director_version=fields.integer("director_version", 0),
            modules={model_name(name): ReportedModule.from_json(modules.take(name)) for name in names},
            error=None if error is None else ReportedError.from_json(error),
            bytes_fetched=fields.integer("bytes_fetched", 0),
            bytes_saved=fields.integer("bytes_saved", 0),
            clock_trusted=fields.flag("clock_trusted", True),
        )


def _text(digest: Digest | None) -> str | None:
    return None if digest is None else str(digest)


def _digest(value: Any) -> Digest | None:
    return None if value is None else Digest(value)


def _phase(fields: Fields) -> Phase | str:
    value = fields.text("phase", chars_max=WORD_CHARS_MAX)
    return Phase(value) if value in set(Phase) else value


def _outcome(value: str) -> Outcome | None:
    return Outcome(value) if value in set(Outcome) else None
