"""Terms of a policy: what a module's worker may use, and the trial a candidate has to stand beside the live model.

Whole numbers only, because canonical JSON, which signed metadata is written in, has no fractions.
"""

from dataclasses import dataclass
from typing import Any, Final

from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import CPUS_MAX, NICE_MAX, PREDICTIONS_MAX, TRIAL_MS_MAX, WORKER_BYTES_MAX

_CODE: Final = "trust.metadata-invalid"
PPM: Final = 1_000_000
PERMILLE: Final = 1_000
_CPU_PERMILLE_MAX: Final = CPUS_MAX * PERMILLE
_RATIO_PERMILLE_MAX: Final = 1_000 * PERMILLE


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker may use of the device. Zero and empty mean: no bound.

    Attributes:
        memory_bytes_max: Memory of the worker and everything it starts.
        cpu_permille_max: Processor time, thousandths of one core: 500 is half a core, 2000 two whole ones.
        cpus: Numbers of the logical processors it may run on, ascending.
        nice: How far it steps back behind other processes, `0..19` (sched(7)).
    """

    memory_bytes_max: int = 0
    cpu_permille_max: int = 0
    cpus: tuple[int, ...] = ()
    nice: int = 0

    def to_json(self) -> JsonObject:
        """The JSON form; what bounds nothing is left out."""
        values: JsonObject = {
            "memory_bytes_max": self.memory_bytes_max,
            "cpu_permille_max": self.cpu_permille_max,
            "cpus": list(self.cpus),
            "nice": self.nice,
        }
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_json(cls, value: Any) -> "Resources":
        """Read what `to_json` wrote; unknown fields are left to later versions.

        Raises:
            ContractError: `trust.metadata-invalid`.
        """
        fields = Fields(value, "resources", _CODE)
        cpus = fields.items("cpus", CPUS_MAX)
        if not all(type(cpu) is int and 0 <= cpu < CPUS_MAX for cpu in cpus):
            raise ContractError(_CODE, f"the cpus of a worker are numbers from 0 to {CPUS_MAX - 1}")
        return cls(
            memory_bytes_max=fields.integer("memory_bytes_max", 0, high=WORKER_BYTES_MAX),
            cpu_permille_max=fields.integer("cpu_permille_max", 0, high=_CPU_PERMILLE_MAX),
            cpus=tuple(sorted(set(cpus))),
            nice=fields.integer("nice", 0, high=NICE_MAX),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate runs beside the live model on a share of its live inputs before it is activated; it answers nobody.

    Elsewhere this is called a shadow deployment. With `gate` the candidate is activated only when it agrees well
    enough; without, the agreement is reported and decides nothing. A bound of zero judges nothing.

    Attributes:
        window_ms: Longest time it takes, `1..TRIAL_MS_MAX`; it ends earlier once `predictions_max` were compared.
        sampling_ppm: Share of the live inputs it is shown, parts per million.
        predictions_min: Fewer compared predictions than this say nothing: with `gate` the trial is repeated later.
        predictions_max: So many are enough.
        cpu_permille_max: Processor time it may use for it, thousandths of one core; what does not fit is skipped.
        memory_bytes_max: Memory its process may use during it.
        top1_ppm_min: Least share of predictions whose largest output element is the same, parts per million.
        distance_ppm_max: Greatest mean distance of the outputs, parts per million of the live outputs' magnitude:
            sum |candidate - live| over sum |live|.
        latency_permille_max: Greatest ratio of the median run times, candidate over live, in thousandths.
        gate: Whether the trial decides.
    """

    window_ms: int
    sampling_ppm: int = PPM
    predictions_min: int = 20
    predictions_max: int = 1_000
    cpu_permille_max: int = 250
    memory_bytes_max: int = 0
    top1_ppm_min: int = 0
    distance_ppm_max: int = 0
    latency_permille_max: int = 0
    gate: bool = False

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "window_ms": self.window_ms,
            "sampling_ppm": self.sampling_ppm,
            "predictions_min": self.predictions_min,
            "predictions_max": self.predictions_max,
            "cpu_permille_max": self.cpu_permille_max,
            "memory_bytes_max": self.memory_bytes_max,
            "top1_ppm_min": self.top1_ppm_min,
            "distance_ppm_max": self.distance_ppm_max,
            "latency_permille_max": self.latency_permille_max,
            "gate": self.gate,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Trial":
        """Read what `to_json` wrote; unknown fields are left to later versions.

        Raises:
            ContractError: `trust.metadata-invalid`.
        """
        fields = Fields(value, "trial", _CODE)
        plain = cls(window_ms=fields.integer("window_ms", low=1, high=TRIAL_MS_MAX))
        least = fields.integer("predictions_min", plain.predictions_min, low=1, high=PREDICTIONS_MAX)
        return cls(
            window_ms=plain.window_ms,
            sampling_ppm=fields.integer("sampling_ppm", plain.sampling_ppm, low=1, high=PPM),
            predictions_min=least,
            predictions_max=fields.integer(
                "predictions_max", max(least, plain.predictions_max), low=least, high=PREDICTIONS_MAX
            ),
            cpu_permille_max=fields.integer("cpu_permille_max", plain.cpu_permille_max, low=1, high=_CPU_PERMILLE_MAX),
            memory_bytes_max=fields.integer("memory_bytes_max", 0, high=WORKER_BYTES_MAX),
            top1_ppm_min=fields.integer("top1_ppm_min", 0, high=PPM),
            distance_ppm_max=fields.integer("distance_ppm_max", 0, high=PPM * PERMILLE),
            latency_permille_max=fields.integer("latency_permille_max", 0, high=_RATIO_PERMILLE_MAX),
            gate=fields.flag("gate", False),
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a trial found.

    Attributes:
        compared: Predictions computed by both.
        skipped: Chosen and not computed, because the processor time of the trial was used up.
        failed: Those on which the candidate failed and the live model did not.
        top1_ppm: Share of the compared ones whose largest output element is the same, parts per million.
        distance_ppm: Mean distance, as `Trial.distance_ppm_max` says.
        latency_permille: Median run time of the candidate over that of the live model, in thousandths; 0 when unknown.
    """

    compared: int = 0
    skipped: int = 0
    failed: int = 0
    top1_ppm: int = 0
    distance_ppm: int = 0
    latency_permille: int = 0

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "compared": self.compared,
            "skipped": self.skipped,
            "failed": self.failed,
            "top1_ppm": self.top1_ppm,
            "distance_ppm": self.distance_ppm,
            "latency_permille": self.latency_permille,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Agreement":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `artifact.document-invalid`.
        """
        fields = Fields(value, "agreement")
        return cls(
            compared=fields.integer("compared", 0),
            skipped=fields.integer("skipped", 0),
            failed=fields.integer("failed", 0),
            top1_ppm=fields.integer("top1_ppm", 0, high=PPM),
            distance_ppm=fields.integer("distance_ppm", 0),
            latency_permille=fields.integer("latency_permille", 0),
        )

    def objections(self, trial: Trial) -> tuple[str, ...]:
        """What of it a trial does not accept, for people; empty when it passes. Too few predictions are none of it."""
        found = []
        if self.failed:
            found.append(f"it failed on {self.failed} inputs that the live model answered")
        if self.top1_ppm < trial.top1_ppm_min:
            found.append(f"top-1 agreement {self.top1_ppm / PPM:.4f} is below {trial.top1_ppm_min / PPM:.4f}")
        if trial.distance_ppm_max and self.distance_ppm > trial.distance_ppm_max:
            found.append(f"distance {self.distance_ppm / PPM:.6f} is above {trial.distance_ppm_max / PPM:.6f}")
        if trial.latency_permille_max and self.latency_permille > trial.latency_permille_max:
            found.append(
                f"latency ratio {self.latency_permille / PERMILLE:.2f} is above "
                f"{trial.latency_permille_max / PERMILLE:.2f}"
            )
        return tuple(found)
