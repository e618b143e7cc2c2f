"""Runs a bundle's members here before anybody else does, in a child process with a bounded life."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_contract.codes import CODES
from edge_contract.errors import EdgeError
from edge_contract.jsonio import dump, parse_object
from edge_contract.runtime import Member
from packager.golden import Tensors, from_safetensors, to_safetensors
from packager.limits import PEAK_STEP_BYTES, PROBE_OUTPUT_BYTES_MAX, PROBE_RESULT_BYTES_MAX, PROBE_SECONDS_DEFAULT
from packager.spec import SourceFile
from packager.wheels import unpack_wheel

# A model or a script has no business with these.
_SECRETS = ("LIGHTERMAN_TOKEN", "LIGHTERMAN_KEY_PASSPHRASE", "LIGHTERMAN_KEY_PASSPHRASE_FILE")


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run showed.

    Attributes:
        outputs: Outputs by whole name.
        load_peak_bytes: Most memory resident after loading, rounded up to `PEAK_STEP_BYTES`.
        load_ms: How long loading took.
    """

    outputs: Tensors
    load_peak_bytes: int
    load_ms: int


def run_trial(
    members: Sequence[tuple[Member, Path | None]],
    inputs: Tensors,
    files: Sequence[SourceFile],
    wheels: Sequence[Path],
    config: Mapping[str, str],
    allow_pickle: bool = False,
    timeout_s: float = PROBE_SECONDS_DEFAULT,
) -> Trial:
    """Load every member, and run those that `inputs` has tensors for.

    Args:
        members: Members with their model file on this machine; a script is taken from the staged bundle instead, and
            a pipeline has none.
        inputs: Input tensors by whole name.
        files: All files and code folders with their paths in the bundle; staged as links, so that scripts find them.
        wheels: Unpacked for scripts to import from.
        config: Environment of the scripts.
        allow_pickle: Whether scripts may load pickles.
        timeout_s: After that the child is ended.

    Raises:
        EdgeError: `model.*`, `artifact.*`, `config.dependency-missing`.
    """
    with tempfile.TemporaryDirectory(prefix="lighterman-trial-") as name:
        folder = Path(name)
        root = _stage(folder / "files", files)
        site = folder / "site"
        site.mkdir()
        for wheel in wheels:
            unpack_wheel(wheel, site)
        (folder / "inputs.safetensors").write_bytes(to_safetensors(inputs))
        job = {
            "members": [_job_member(member, source, root) for member, source in members],
            "import_folders": [str(root), str(site)],
            "config": dict(config),
            "allow_pickle": allow_pickle,
            "has_inputs": bool(inputs),
        }
        (folder / "job.json").write_bytes(dump(job))
        _run_child(folder, root, timeout_s)
        return _result(folder)


def _stage(root: Path, files: Sequence[SourceFile]) -> Path:
    root.mkdir()
    for file in files:
        place = root / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file.source)
    return root


def _job_member(member: Member, source: Path | None, root: Path) -> dict[str, object]:
    entry = root / member.entry if member.engine == "script" else source
    return {
        "name": member.name,
        "engine": member.engine,
        "entry": str(entry),
        "inputs": [item.to_json() for item in member.inputs],
        "outputs": [item.to_json() for item in member.outputs],
        "options": member.options,
        "steps": [step.to_json() for step in member.steps],
    }


def _run_child(folder: Path, root: Path, timeout_s: float) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in _SECRETS}
    environment["ORT_DISABLE_TELEMETRY"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with (folder / "output.txt").open("wb") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "packager.probe", str(folder)],
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EdgeError(
                "model.timeout",
                f"the model did not load and run within {timeout_s:g} s",
                "Use fewer golden vectors, or trust them with --trust-golden.",
            ) from None
    if done.returncode != 0 or not (folder / "result.json").exists():
        raise EdgeError(
            "model.worker-crashed", f"the process that ran the model ended with {done.returncode}: {_tail(folder)}"
        )


def _tail(folder: Path) -> str:
    data = (folder / "output.txt").read_bytes()[-PROBE_OUTPUT_BYTES_MAX:]
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return " | ".join(lines[-3:])[:300] or "it said nothing"


def _result(folder: Path) -> Trial:
    result = parse_object((folder / "result.json").read_bytes(), "result of the trial", PROBE_RESULT_BYTES_MAX)
    error = result.get("error")
    if error is not None:
        code = error["code"] if error.get("code") in CODES else "internal.bug"
        raise EdgeError(code, error["detail"], error["hint"])
    peak = -(-int(result["load_peak_bytes"]) // PEAK_STEP_BYTES) * PEAK_STEP_BYTES
    outputs = from_safetensors((folder / "outputs.safetensors").read_bytes(), "outputs")
    return Trial(outputs, peak, int(result["load_ms"]))
