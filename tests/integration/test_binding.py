"""Sensors without code: what is published on an input topic comes back as a prediction on an output topic."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_contract.digest import Digest
from edge_contract.pipeline import Step
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from tests.integration.binding_ground import DEVICE, bind, ground, row, sensor
from tests.integration.serving import MODULE
from tests.support.mosquitto import MosquittoBroker
from tests.support.net import wait_until
from tests.support.require import require_program
from tests.support.slots import adder, adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}], "id": "q-1"}

IMAGE_SCRIPT = b"""
import numpy as np

def run(data):
    image = data["image"].ravel()[0]
    return {"size": np.array([len(image)], dtype=np.int64), "first": np.array([image[0]], dtype=np.int64)}
"""


def image_slot(folder: Path, **changes: Any) -> tuple[Digest, Path]:
    member = Member(
        "digits",
        "script",
        "score.py",
        inputs=(TensorSpec("image", "BYTES", (1,)),),
        outputs=(TensorSpec("size", "INT64", (1,)), TensorSpec("first", "INT64", (1,))),
        options={"imports": "device"},
    )
    return write_slot(folder, [member], {"score.py": IMAGE_SCRIPT}, bindings=(bind(form="bytes", **changes),))


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_a_sensor_publishes_and_the_prediction_arrives(tmp_path: Path, broker: MosquittoBroker, protocol: str) -> None:
    with ground(tmp_path, broker.port, protocol=protocol) as device, sensor(broker.port) as peer:
        bundle = adder_slot(device.serving.slots, 10.0, version=3, bindings=(bind(),))
        device.live(bundle)
        device.wait_bound("b")
        # A whole request, a bare tensor, and a tensor by name: the same answer.
        for content in (ROW, [[1, 2, 3, 4]], {"x": [[1, 2, 3, 4]]}):
            peer.publish(f"in/{DEVICE}", json.dumps(content).encode())
        answers = peer.on(f"out/{DEVICE}", 3)
        for heard in answers:
            document = heard.document
            assert document["outputs"][0]["data"] == [11.0, 12.0, 13.0, 14.0]
            assert document["model_name"] == "digits"
            assert document["model_version"] == "3"
            assert document["manifest"] == str(bundle[0])
            assert document["topic"] == f"in/{DEVICE}"
            assert document["latency_us"] > 0
            if protocol == "auto":
                assert heard.facts["lighterman-manifest"] == str(bundle[0])
                assert heard.facts["lighterman-hops"] == "1"
        assert answers[0].document["id"] == "q-1"
        assert device.report()["modules"][MODULE]["protocol"] == ("5" if protocol == "auto" else "3.1.1")
        assert device.counts()["answered"] == 3


def test_raw_tensors_go_in_and_come_out(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(form="tensor", answer="tensor"),)))
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", row(1, 2, 3, 4) + row(5, 6, 7, 8))
        heard = peer.on(f"out/{DEVICE}")[0]
        assert np.frombuffer(heard.content, "<f4").tolist() == [11, 12, 13, 14, 15, 16, 17, 18]
        assert heard.facts["lighterman-shape"] == "2,4"
        assert heard.facts["lighterman-datatype"] == "FP32"
        assert heard.facts["lighterman-output"] == "y"


def test_an_image_goes_through_the_bundles_own_preparation(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(image_slot(device.serving.slots, input_topic="cameras/+/jpeg"))
        device.wait_bound("b")
        peer.publish("cameras/front/jpeg", b"\xff" + bytes(299_999))
        outputs = {item["name"]: item["data"] for item in peer.on(f"out/{DEVICE}")[0].document["outputs"]}
        assert outputs == {"size": [300_000], "first": [255]}


PREPARE_SCRIPT = b"""
import numpy as np

def run(data):
    return {"x": np.frombuffer(data["image"].ravel()[0], dtype=np.uint8).astype(np.float32).reshape(1, 4)}
"""


def test_an_image_goes_through_a_pipeline(tmp_path: Path, broker: MosquittoBroker) -> None:
    image, x, y = (
        TensorSpec("image", "BYTES", (1,)),
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("y", "FP32", (-1, 4)),
    )
    members = [
        Member("prepare", "script", "score.py", (image,), (x,), {"imports": "device"}),
        Member("adder", "onnx", "model.onnx", (x,), (y,)),
        Member(
            "digits",
            "pipeline",
            inputs=(image,),
            outputs=(y,),
            steps=(Step("prepare", {"image": "image"}, {"x": "x"}), Step("adder", {"x": "x"}, {"y": "y"})),
        ),
    ]
    files = {"score.py": PREPARE_SCRIPT, "model.onnx": adder(10.0)}
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(write_slot(device.serving.slots, members, files, bindings=(bind(form="bytes", answer="tensor"),)))
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", bytes([1, 2, 3, 4]))
        assert np.frombuffer(peer.on(f"out/{DEVICE}")[0].content, "<f4").tolist() == [11, 12, 13, 14]


def test_a_script_takes_any_json_and_answers_with_its_result(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(
            write_slot(
                device.serving.slots,
                [Member("digits", "script", "score.py")],
                {"score.py": b"def run(data): return {'is_hot': data['celsius'] > 80}\n"},
                bindings=(bind(answer="result"),),
            )
        )
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", b'{"celsius": 93.5}')
        assert peer.on(f"out/{DEVICE}")[0].document == {"is_hot": True}


def test_a_question_is_answered_where_its_sender_wants(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port, "out/#", "errors/#", "replies/#") as peer:
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(response_topics="replies/#", retain=True),)))
        device.wait_bound("b")
        content = json.dumps(ROW).encode()
        peer.publish(f"in/{DEVICE}", content, response_topic="replies/me", correlation=b"\x00\x01")
        heard = peer.on("replies/me")[0]
        assert heard.correlation == b"\x00\x01"
        assert heard.document["outputs"][0]["data"] == [11.0, 12.0, 13.0, 14.0]
        # Its errors as well; and a topic that the author did not allow is refused on the error topic.
        peer.publish(f"in/{DEVICE}", b"{", response_topic="replies/me", correlation=b"\x02")
        assert peer.on("replies/me", 2)[1].document["code"] == "model.input-invalid"
        for wish in ("elsewhere", "replies/+", "lighterman/1/cam-7/nudge", f"in/{DEVICE}"):
            peer.publish(f"in/{DEVICE}", content, response_topic=wish, correlation=wish.encode())
        refused = peer.on(f"errors/{MODULE}", 3)
        assert {heard.document["code"] for heard in refused} == {"model.input-invalid"}
        assert peer.count("elsewhere") == 0
        assert device.counts()["answered"] == 1


def test_retained_answers_are_kept_and_retained_inputs_are_not_news(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        peer.publish(f"in/{DEVICE}", b"[[9, 9, 9, 9]]", retain=True)
        peer.publish("old/taken", b"[[1, 1, 1, 1]]", retain=True)
        device.live(
            adder_slot(
                device.serving.slots,
                10.0,
                bindings=(
                    bind(retain=True),
                    bind(name="t", input_topic="old/taken", output_topic="out/taken", take_retained=True),
                ),
            )
        )
        device.wait_bound("b", "t")
        assert peer.on("out/taken")[0].document["outputs"][0]["data"] == [11.0] * 4
        peer.publish(f"in/{DEVICE}", b"[[1, 2, 3, 4]]")
        assert peer.on(f"out/{DEVICE}")[0].document["outputs"][0]["data"] == [11.0, 12.0, 13.0, 14.0]
        with sensor(broker.port, name="later") as later:
            assert later.on(f"out/{DEVICE}")[0].is_retained
        assert device.counts()["answered"] == 1


def test_the_counters_are_what_prometheus_reads(tmp_path: Path, broker: MosquittoBroker) -> None:
    curl = require_program("curl")
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", b"[[1, 2, 3, 4]]")
        peer.on(f"out/{DEVICE}")
        argv = [curl, "-fsS", "--unix-socket", str(device.run_dir / "binding.sock"), "http://d/metrics"]
        text = subprocess.run(argv, capture_output=True, check=True, timeout=20).stdout
        labels = f'module="{MODULE}",binding="b"'
        assert f'lighterman_binding_messages_total{{{labels},outcome="answered"}} 1'.encode() in text
        assert f'lighterman_binding_online{{module="{MODULE}"}} 1'.encode() in text
        promtool = require_program("promtool")
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, timeout=20, check=False
        )
        assert checked.returncode == 0, checked.stderr


def test_no_bindings_no_process(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(adder_slot(device.serving.slots, 10.0))
        assert device.keeper.report() is None
        device.live(adder_slot(device.serving.slots, 20.0, version=2, bindings=(bind(),)))
        device.wait_bound("b")
        report = device.keeper.report()
        assert report is not None
        assert report["phase"] == "running"
        device.live(adder_slot(device.serving.slots, 10.0))
        wait_until(lambda: device.keeper.report() is None and not device.report(), 30, what="the process to end")
        # Nothing is left at the broker that would collect messages for nobody.
        peer.publish(f"in/{DEVICE}", b"[[1, 2, 3, 4]]")
        device.live(adder_slot(device.serving.slots, 20.0, version=2, bindings=(bind(),)))
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", b"[[5, 5, 5, 5]]")
        assert peer.on(f"out/{DEVICE}")[0].document["outputs"][0]["data"] == [25.0] * 4
