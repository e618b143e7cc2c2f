"""What engines promise when a real worker serves them: pipelines, permits, what scripts may import, compiled models."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.inference import Tensor
from edge_contract.deployment import Policy
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Step
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from tests.integration.serving import MODULE, Serving, serving
from tests.support.require import REPOSITORY_ROOT
from tests.support.slots import adder, write_slot

pytestmark = pytest.mark.slow

SCRIPT = Member("code", "script", "score.py")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Serving]:
    """A supervisor that offers compiled models."""
    with serving(tmp_path, compiled_dir=tmp_path / "compiled") as state:
        yield state


def _serve(place: Serving, slot: tuple[Any, Path], policy: Policy | None = None) -> None:
    place.supervisor.prove(MODULE, *slot, policy or Policy())
    place.supervisor.activate(MODULE, slot[0])


def _ask(place: Serving, member: str, document: Any) -> Any:
    """The parsed answer to a request as any HTTP client sends it."""
    import http.client

    _unix, host, port = place.supervisor.addresses(MODULE)
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("POST", f"/v2/models/{member}/infer", json.dumps(document))
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


# --- pipelines


def _texts(*items: str) -> Any:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(items)], "data": items}]}


def test_a_pipeline_answers_beside_its_members(place: Serving) -> None:
    text, number = TensorSpec("text", "BYTES", (-1,)), TensorSpec("x", "FP32", (-1, 4))
    members = [
        Member("read", "script", "read.py", (text,), (number,)),
        Member("add", "onnx", "model.onnx"),
        Member(
            "both",
            "pipeline",
            inputs=(text,),
            outputs=(TensorSpec("y", "FP32", (-1, 4)),),
            steps=(Step("read", {"text": "text"}, {"x": "x"}), Step("add", {"x": "x"}, {"y": "y"})),
        ),
    ]
    read = b"""
import numpy as np
class Unreadable(Exception):
    is_input_invalid = True
def run(data):
    try:
        return {"x": np.array([[float(part) for part in item.split()] for item in data["text"]], np.float32)}
    except ValueError as error:
        raise Unreadable(str(error))
"""
    _serve(place, write_slot(place.slots, members, {"read.py": read, "model.onnx": adder(10)}))
    status, answer = _ask(place, "both", _texts("1 2 3 4", "0 0 0 0"))
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == [11, 12, 13, 14, 10, 10, 10, 10]
    status, answer = _ask(place, "both", _texts("1 2 x 4"))
    assert (status, answer["code"]) == (400, "model.input-invalid")
    assert "'read'" in answer["error"]
    x = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
    assert _ask(place, "add", x)[1]["outputs"][0]["data"] == [10] * 4


# --- whose packages


def _script(body: str) -> bytes:
    return f"def run(data):\n    {body}\n".encode()


def test_a_script_does_not_see_what_the_device_has_installed(place: Serving) -> None:
    importing = b"import click\ndef run(data): return click.__name__\n"
    with pytest.raises(EdgeError) as caught:
        _serve(place, write_slot(place.slots, [SCRIPT], {"score.py": importing}))
    assert caught.value.code == "model.load-failed"
    assert "No module named 'click'" in caught.value.detail
    asking = Member("code", "script", "score.py", options={"imports": "device"})
    _serve(place, write_slot(place.slots, [asking], {"score.py": importing}))
    assert _ask(place, "code", {})[1]["result"] == "click"


def test_what_the_bundle_brings_comes_before_the_device_and_after_the_standard_library(place: Serving) -> None:
    site = {"click.py": b"OWN = 'of the bundle'\n", "json.py": b"OWN = 1\n", "only_here.py": b"HERE = True\n"}
    source = b"""
import json, site, sys
import click, only_here
import numpy
def run(data):
    return {
        "click": click.OWN, "json": hasattr(json, "OWN"), "user": bool(site.ENABLE_USER_SITE),
        "numpy": numpy.arange(3).sum(), "sites": [entry for entry in sys.path if entry.endswith("site-packages")],
    }
"""
    for options in ({}, {"imports": "device"}):
        member = Member("code", "script", "score.py", options=options)
        _serve(place, write_slot(place.slots, [member], {"score.py": source}, site=site))
        status, answer = _ask(place, "code", {})
        assert status == 200, answer
        seen = answer["result"]
        assert (seen["click"], seen["json"], seen["user"], seen["numpy"]) == ("of the bundle", False, False, 3)
        assert bool(seen["sites"]) == bool(options)


def test_a_bundles_own_numpy_is_the_one_that_is_used(place: Serving) -> None:
    """Pretended by a wrapper: what the worker imports as numpy is what lies in the bundle."""
    import numpy

    wrapper = f"""
import importlib.util, sys
_place = {str(Path(numpy.__file__).parent)!r}
_spec = importlib.util.spec_from_file_location("numpy", _place + "/__init__.py", submodule_search_locations=[_place])
_real = importlib.util.module_from_spec(_spec)
sys.modules["numpy"] = _real
_spec.loader.exec_module(_real)
_real.OF_THE_BUNDLE = True
"""
    source = _script("import numpy; return numpy.OF_THE_BUNDLE")
    _serve(place, write_slot(place.slots, [SCRIPT], {"score.py": source}, site={"numpy/__init__.py": wrapper.encode()}))
    assert _ask(place, "code", {})[1]["result"] is True


def test_the_server_goes_on_when_scripts_have_nothing_of_the_device_left(place: Serving) -> None:
    members = [SCRIPT, Member("add", "onnx", "model.onnx")]
    files = {"score.py": _script("return 1"), "model.onnx": adder(10)}
    _serve(place, write_slot(place.slots, members, files))
    with place.client() as client:
        found = client.infer("add", [Tensor("x", "FP32", (1, 4), [0.0] * 4)])
    assert found is not None
    assert _ask(place, "code", {})[1]["result"] == 1


# --- pickles


@pytest.mark.parametrize("is_permitted", [False, True])
def test_pickles_need_the_director_as_well_as_the_author(place: Serving, is_permitted: bool) -> None:
    source = b"import pickle, pathlib\ndef run(data): return str(pickle.loads(DATA))\n"
    source = source.replace(b"DATA", repr(pickle.dumps(Path("weights"))).encode())
    slot = write_slot(place.slots, [SCRIPT], {"score.py": source}, allow_pickle=True)
    if not is_permitted:
        with pytest.raises(EdgeError) as caught:
            _serve(place, slot)
        assert caught.value.code == "model.pickle-refused"
        return
    _serve(place, slot, Policy(allow_pickle=True))
    assert _ask(place, "code", {})[1]["result"] == "weights"


# --- execution providers


@pytest.mark.parametrize(
    ("wanted", "allowed", "says"),
    [
        ("CUDAExecutionProvider", (), "does not allow"),
        ("AzureExecutionProvider", (), "does not allow"),
        ("CUDAExecutionProvider", ("CUDAExecutionProvider",), "does not have"),
    ],
)
def test_a_provider_that_is_not_allowed_or_not_there_is_said_so(
    tmp_path: Path, wanted: str, allowed: tuple[str, ...], says: str
) -> None:
    member = Member("digits", "onnx", "model.onnx", options={"providers": wanted})
    with serving(tmp_path, providers=allowed) as place:
        with pytest.raises(EdgeError) as caught:
            _serve(place, write_slot(place.slots, [member], {"model.onnx": adder(10)}))
        assert caught.value.code == "model.engine-unavailable"
        assert says in caught.value.detail


def test_a_provider_that_bundle_and_device_agree_on_is_used(tmp_path: Path) -> None:
    import onnxruntime

    other = next((name for name in onnxruntime.get_available_providers() if name != "CPUExecutionProvider"), None)
    if other is None:
        pytest.skip("onnxruntime has nothing but the CPU here")
    member = Member("digits", "onnx", "model.onnx", options={"providers": other})
    with serving(tmp_path, providers=(other,)) as place:
        _serve(place, write_slot(place.slots, [member], {"model.onnx": adder(10)}))
        x = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
        assert _ask(place, "digits", x)[1]["outputs"][0]["data"] == [10] * 4


# --- compiled models


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model large enough to be worth compiling."""
    path = tmp_path_factory.mktemp("mobilenet") / "model.onnx"
    command = [sys.executable, "-m", "benchmarks._mobilenet", str(path)]
    subprocess.run(command, check=True, cwd=REPOSITORY_ROOT, timeout=60)
    return path.read_bytes()


def _entries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "compiled").glob("[0-9a-f]*/entry.json"))


def test_the_second_worker_loads_what_the_first_one_compiled(place: Serving, tmp_path: Path, mobilenet: bytes) -> None:
    slot = write_slot(place.slots, [Member("digits", "onnx", "model.onnx")], {"model.onnx": mobilenet})
    image = {"name": "image", "datatype": "FP32", "shape": [1, 3, 224, 224], "data": [0.5] * (3 * 224 * 224)}
    _serve(place, slot)
    first = _ask(place, "digits", {"inputs": [image]})[1]["outputs"][0]["data"]
    assert "compiled form" not in place.log()
    _wait(lambda: bool(_entries(tmp_path)), 60)
    place.supervisor.restart(MODULE, *slot)
    assert "'digits' is served from its compiled form" in place.log()
    assert _ask(place, "digits", {"inputs": [image]})[1]["outputs"][0]["data"] == first
    # Dropped at any moment, also under a worker that uses it.
    for entry in _entries(tmp_path):
        for path in entry.parent.iterdir():
            path.unlink()
        entry.parent.rmdir()
    assert _ask(place, "digits", {"inputs": [image]})[1]["outputs"][0]["data"] == first
    place.supervisor.restart(MODULE, *slot)
    assert _ask(place, "digits", {"inputs": [image]})[1]["outputs"][0]["data"] == first


def test_who_compiles_ends_with_its_worker(place: Serving, tmp_path: Path, mobilenet: bytes) -> None:
    _manifest, slot = write_slot(place.slots, [Member("digits", "onnx", "model.onnx")], {"model.onnx": mobilenet})
    command = [sys.executable, "-m", "edge_agent.worker.compiling", "--slot", str(slot), "--member", "digits"]
    command += ["--into", str(tmp_path / "compiled")]
    process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.close()  # as the kernel does when the worker is killed
    assert process.wait(30) == 0
    assert not _entries(tmp_path)
