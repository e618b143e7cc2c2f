"""Runs the members of a bundle once, in a process of its own: `python -m packager.probe FOLDER`.

A process of its own, because a model may crash the runtime, a script is anybody's code, and the memory that loading
takes can only be measured where nothing else was loaded. The folder holds `job.json`; `result.json` and
`outputs.safetensors` are written to it. This is the one place of the packager that imports an inference runtime.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_contract.engines import ENGINES
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.limits import KIB, MIB
from packager.golden import NUMPY_BY_TYPE, Array, Tensors, bytes_of, from_safetensors, texts_of, to_safetensors

_JOB_BYTES_MAX: Final = 4 * MIB
_SITES: Final = ("site-packages", "dist-packages")
Run = Callable[[Tensors], Tensors]
Row = tuple[str, str, tuple[int, ...]]


def litert_signature(path: Path) -> tuple[list[Row], list[Row]]:
    """Names, numpy datatypes and shapes (-1 free) of a TFLite model's inputs and outputs.

    Raises:
        EdgeError: `artifact.not-a-model`.
    """
    interpreter = _litert(path)
    sides = []
    for names, details in zip(_litert_names(interpreter), _litert_details(interpreter), strict=True):
        rows = []
        for name, item in zip(names, details, strict=True):
            shape = item["shape_signature"] if len(item["shape_signature"]) else item["shape"]
            rows.append((name, np.dtype(item["dtype"]).name, tuple(int(dim) for dim in shape)))
        sides.append(rows)
    return sides[0], sides[1]


def _litert(path: Path, threads: int = 1) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise EdgeError(
            "config.dependency-missing",
            "this machine has no TensorFlow Lite runtime",
            "Install ai-edge-litert, or trust the golden vectors with --trust-golden.",
        ) from None
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise EdgeError("artifact.not-a-model", f"{path} cannot be loaded: {error}") from None
    return interpreter


def _litert_details(interpreter: Any) -> tuple[Any, Any]:
    return interpreter.get_input_details(), interpreter.get_output_details()


def _litert_names(interpreter: Any) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs: those of the model's first signature where it has one, as devices do it."""
    signatures = interpreter.get_signature_list()
    sides: list[list[str]] = []
    runner = interpreter.get_signature_runner(next(iter(signatures))) if signatures else None
    for number, details in enumerate(_litert_details(interpreter)):
        known: dict[int, str] = {}
        if runner is not None:
            named = runner.get_output_details() if number else runner.get_input_details()
            known = {int(item["index"]): str(name) for name, item in named.items()}
        sides.append([known.get(int(item["index"]), str(item["name"])) for item in details])
    return sides[0], sides[1]


def _load_onnx(entry: Path, options: Mapping[str, str]) -> Run:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime as ort
    except ImportError:
        raise EdgeError(
            "config.dependency-missing",
            "this machine has no ONNX runtime",
            "Install onnxruntime, or trust the golden vectors with --trust-golden.",
        ) from None
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = int(options.get("threads", "1"))
    try:
        session = ort.InferenceSession(str(entry), settings, providers=["CPUExecutionProvider"])
    # The runtime's exceptions share no base class but this one.
    except Exception as error:  # noqa: BLE001
        raise EdgeError("model.load-failed", f"{entry.name} does not load: {_first_line(error)}") from None
    names = [item.name for item in session.get_outputs()]

    def run(feed: Tensors) -> Tensors:
        # The runtime takes text where requests have bytes.
        given = {name: texts_of(array) if array.dtype.kind == "O" else array for name, array in feed.items()}
        return dict(zip(names, (np.asarray(item) for item in session.run(names, given)), strict=True))

    return run


def _load_litert(entry: Path, options: Mapping[str, str], declared: list[str]) -> Run:
    interpreter = _litert(entry, int(options.get("threads", "1")))
    details = _litert_details(interpreter)
    names = _litert_names(interpreter)
    # A description may also use the tensors' own names.
    places = [
        {str(item["name"]): int(item["index"]) for item in side}
        | {name: int(item["index"]) for name, item in zip(called, side, strict=True)}
        for called, side in zip(names, details, strict=True)
    ]

    def run(feed: Tensors) -> Tensors:
        for name, array in feed.items():
            interpreter.resize_tensor_input(places[0][name], array.shape)
        interpreter.allocate_tensors()
        for name, array in feed.items():
            interpreter.set_tensor(places[0][name], array)
        interpreter.invoke()
        return {name: interpreter.get_tensor(places[1][name]) for name in declared}

    return run


def _refuse_pickles() -> None:
    """Let unpickling fail, as it will on devices unless the author allows it."""

    def watch(event: str, _arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            raise RuntimeError("the bundle does not allow pickles; see serving.allow_pickle")

    sys.addaudithook(watch)


def _load_script(entry: Path, name: str, outputs: list[str]) -> Run:
    sys.path.insert(0, str(entry.parent))
    module_name = "lighterman_member_" + "".join(c if c.isalnum() else "_" for c in name)
    spec = importlib.util.spec_from_file_location(module_name, entry)
    if spec is None or spec.loader is None:
        raise EdgeError("artifact.not-a-model", f"{entry.name} is not a Python script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        if hasattr(module, "init"):
            module.init()
    # Whatever a script raises, and SystemExit too, means that it does not load.
    except BaseException as error:  # noqa: BLE001
        raise EdgeError("model.load-failed", f"{entry.name} does not load: {_first_line(error)}") from None

    def run(feed: Tensors) -> Tensors:
        answer = module.run(dict(feed))
        if not isinstance(answer, Mapping):
            if len(outputs) != 1:
                why = f"run() of {entry.name} has to give a dict of its {len(outputs)} outputs"
                raise EdgeError("model.output-invalid", why)
            answer = {outputs[0]: answer}
        return {str(name): np.asarray(value) for name, value in answer.items()}

    return run


def _chain(pipeline: JsonObject, loaded: Mapping[str, Run], specs: Mapping[str, JsonObject]) -> Run:
    """Steps, which are in an order in which they can run, one after another."""

    def run(feed: Tensors) -> Tensors:
        tensors = dict(feed)
        for step in pipeline["steps"]:
            name = step["member"]
            made = loaded[name]({key: tensors[tensor] for key, tensor in step["inputs"].items()})
            declared = {spec["name"]: spec for spec in specs[name]["outputs"]}
            for key, tensor in step["outputs"].items():
                if key not in made:
                    raise EdgeError("model.output-invalid", f"{name} gives no output {key!r}")
                tensors[tensor] = _cast(made[key], declared[key], name)
        return {spec["name"]: tensors[spec["name"]] for spec in pipeline["outputs"]}

    return run


def _require_own_imports(known: set[str], folders: Sequence[str]) -> None:
    """Refuse scripts that imported what only this machine happens to have: a device would not find it.

    Raises:
        EdgeError: `model.load-failed`.
    """
    for name, module in sorted(sys.modules.items()):
        place = getattr(module, "__file__", None) or ""
        is_installed = any(part in _SITES for part in Path(place).parts)
        if name.partition(".")[0] in known or not is_installed or any(place.startswith(item) for item in folders):
            continue
        raise EdgeError(
            "model.load-failed",
            f"a script imports {name.partition('.')[0]!r}, which is on this machine and not in the bundle",
            'Add its wheel, or set the option imports = "device" of the script where devices have it installed.',
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else 'no message'}"


def _rows(member: JsonObject, feed: Tensors) -> list[Tensors]:
    """The feed in steps of the batch size that the model fixes, whole when it leaves it free."""
    fixed = {
        spec["shape"][0] for spec in member["inputs"] if spec["shape"] and spec["shape"][0] > 0 and spec["name"] in feed
    }
    counts = {array.shape[0] for array in feed.values() if array.ndim}
    if len(fixed) != 1 or len(counts) != 1 or counts == fixed:
        return [feed]
    step, count = fixed.pop(), counts.pop()
    return [{name: array[n : n + step] for name, array in feed.items()} for n in range(0, count, step)]


def _prove(member: JsonObject, run: Run, feed: Tensors) -> Tensors:
    parts: list[Tensors] = []
    for rows in _rows(member, feed):
        try:
            parts.append(run(rows))
        except EdgeError:
            raise
        # The runtimes raise exceptions of their own kinds, and a script any.
        except Exception as error:  # noqa: BLE001
            raise EdgeError("model.inference-failed", f"{member['name']}: {_first_line(error)}") from None
    result: Tensors = {}
    for spec in member["outputs"]:
        name = spec["name"]
        missing = [part for part in parts if name not in part]
        if missing:
            raise EdgeError("model.output-invalid", f"{member['name']} gives no output {name!r}")
        array: Array = parts[0][name] if len(parts) == 1 else np.concatenate([part[name] for part in parts])
        result[f"{member['name']}/output/{name}"] = _cast(array, spec, member["name"])
    return result


def _cast(array: Array, spec: JsonObject, member: str) -> Array:
    """An output in its declared datatype, as devices do it: nothing but the precision of floats may be lost."""
    why = f"{member}: {spec['name']!r} has the datatype {array.dtype}, not {spec['datatype']}"
    if spec["datatype"] == "BYTES":
        if array.dtype.kind not in "OSU":
            raise EdgeError("model.output-invalid", why)
        return bytes_of(array)
    wanted = np.dtype(NUMPY_BY_TYPE[spec["datatype"]])
    if array.dtype == wanted:
        return array
    if wanted.kind == "f" and array.dtype.kind in "fiub":
        return array.astype(wanted)
    if wanted.kind in "iu" and array.dtype.kind in "iub":
        cast = array.astype(wanted)
        if np.array_equal(cast, array):
            return cast
    raise EdgeError("model.output-invalid", why)


def peak_bytes() -> int:
    """Most memory this process ever had resident (`VmHWM`; unlike rusage it starts anew with the program)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    return 0


def _load_all(members: Sequence[JsonObject]) -> tuple[dict[str, Run], set[str]]:
    """Load members in the order that devices load them: runtimes, scripts, pipelines.

    Returns:
        What runs each, and the names of the packages that were imported before the first script was.
    """
    loaded: dict[str, Run] = {}
    by_engine = {engine: [member for member in members if member["engine"] == engine] for engine in ENGINES}
    for member in by_engine["onnx"]:
        loaded[member["name"]] = _load_onnx(Path(member["entry"]), member["options"])
    for member in by_engine["litert"]:
        loaded[member["name"]] = _load_litert(Path(member["entry"]), member["options"], _outputs_of(member))
    known = {name.partition(".")[0] for name in sys.modules}
    for member in by_engine["script"]:
        loaded[member["name"]] = _load_script(Path(member["entry"]), member["name"], _outputs_of(member))
    specs = {member["name"]: member for member in members}
    for member in by_engine["pipeline"]:
        loaded[member["name"]] = _chain(member, loaded, specs)
    return loaded, known


def _outputs_of(member: JsonObject) -> list[str]:
    return [spec["name"] for spec in member["outputs"]]


def run_job(folder: Path) -> JsonObject:
    """Load every member, run those that have inputs, write the outputs; gives what `result.json` says.

    Raises:
        EdgeError: `model.*`, `artifact.*`, `config.dependency-missing`.
    """
    job = parse_object((folder / "job.json").read_bytes(), "job", _JOB_BYTES_MAX)
    if not job["allow_pickle"]:
        _refuse_pickles()
    sys.dont_write_bytecode = True
    sys.path[:0] = job["import_folders"]
    os.environ.update({key: value for key, value in job["config"].items() if key != "ORT_DISABLE_TELEMETRY"})
    os.environ.setdefault("AZUREML_MODEL_DIR", job["import_folders"][0])
    inputs = from_safetensors((folder / "inputs.safetensors").read_bytes()) if job["has_inputs"] else {}
    began = time.monotonic()
    loaded, known = _load_all(job["members"])
    load_ms = int((time.monotonic() - began) * 1000)
    peak = peak_bytes()
    outputs: Tensors = {}
    for member in job["members"]:
        prefix = f"{member['name']}/input/"
        feed = {name[len(prefix) :]: array for name, array in inputs.items() if name.startswith(prefix)}
        if feed:
            outputs |= _prove(member, loaded[member["name"]], feed)
    if any(member["engine"] == "script" and member["options"].get("imports") != "device" for member in job["members"]):
        _require_own_imports(known, job["import_folders"])
    (folder / "outputs.safetensors").write_bytes(to_safetensors(outputs))
    return {"load_ms": load_ms, "load_peak_bytes": peak}


def main() -> None:
    """Run the job of the folder named by the first argument; how it went is in `result.json`."""
    folder = Path(sys.argv[1])
    try:
        result = run_job(folder)
    except EdgeError as error:
        result = {"error": error.to_json()}
    (folder / "result.json").write_bytes(dump(result))


if __name__ == "__main__":
    main()
