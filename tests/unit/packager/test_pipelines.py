"""Pipelines, engine options and batching in a description, and text in golden vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_contract.errors import EdgeError
from edge_contract.pipeline import Batching
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from packager.golden import compare, fit, from_safetensors, load_tensors, to_safetensors
from packager.spec import Flags, Spec
from packager.specload import load_spec
from tests.unit.packager.support import write_model

MEMBERS = '[model]\nname = "m"\n[members.one]\nfile = "model.onnx"\n'


def _spec(tmp_path: Path, text: str) -> Spec:
    write_model(tmp_path)
    file = tmp_path / "lighterman.toml"
    file.write_text(MEMBERS + text, encoding="utf-8")
    return load_spec(file, Flags(version=1))


def _refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(EdgeError) as caught:
        _spec(tmp_path, text)
    assert caught.value.code == "config.invalid"
    return caught.value.detail


def test_a_file_says_pipelines_options_and_batching(tmp_path: Path) -> None:
    spec = _spec(
        tmp_path,
        'options = { graph_level = "basic", spinning = "on", spin_us = "50" }\n'
        "batching = { rows_max = 4, wait_us = 100 }\n"
        '[pipelines.both]\nsteps = ["one"]\nbatching = { rows_max = 8, wait_us = 0 }\n'
        '[pipelines.named]\nsteps = [{ member = "one", inputs = { x = "x" }, outputs = { y = "z" } }]\n',
    )
    assert spec.members[0].batching == Batching(4, 100)
    both, named = spec.pipelines
    assert (both.name, both.chain, both.steps) == ("both", ("one",), ())
    assert (named.name, named.chain, named.steps[0].outputs) == ("named", (), {"y": "z"})
    assert both.batching == Batching(8, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[pipelines.one]\nsteps = ["one"]\n', "has the name of a member"),
        ("[pipelines.p]\nsteps = []\n", "at least one"),
        ('[pipelines.p]\nsteps = ["one", { member = "one" }]\n', "are tables, or the names"),
        ('[pipelines.p]\nsteps = [{ member = "one" }]\n', "tensors it takes and makes"),
        ('[pipelines.p]\nsteps = ["one"]\nengine = "onnx"\n', "'engine'"),
        ('engine = "pipeline"\n', "not known"),
        ("batching = { rows_max = 1, wait_us = 0 }\n", "rows_max"),
        ("batching = { rows_max = 8 }\n", "wait_us"),
        ('options = { providers = "CUDA" }\n', "execution providers"),
        ('options = { spin_us = "100" }\n', "spinning is off"),
        ('options = { xnnpack = "on" }\n', "no option 'xnnpack'"),
        ('options = { threads = "0" }\n', "from 1 to 64"),
    ],
)
def test_what_a_device_would_refuse_is_refused_here(tmp_path: Path, text: str, says: str) -> None:
    assert says in _refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (Flags(options=(("", "threads"),)), "KEY=VALUE"),
        (Flags(options=(("two", "threads=1"),)), "none of them"),
        (Flags(options=(("", "turbo=on"),)), "no option 'turbo'"),
        (Flags(batching=(("", "8"),)), "ROWS:WAIT_US"),
        (Flags(batching=(("", "1:0"),)), "rows_max"),
        (Flags(pipelines=("one=one",)), "same name"),
    ],
)
def test_flags_are_checked_alike(tmp_path: Path, flags: Flags, says: str) -> None:
    write_model(tmp_path)
    (tmp_path / "lighterman.toml").write_text(MEMBERS, encoding="utf-8")
    with pytest.raises(EdgeError) as caught:
        load_spec(tmp_path / "lighterman.toml", flags)
    assert says in caught.value.detail


# --- text in golden vectors

TEXT = Member("m", "script", "s.py", (TensorSpec("text", "BYTES", (-1, 2)),), (TensorSpec("label", "BYTES", (-1,)),))


def test_text_survives_the_file_and_its_shape_too(tmp_path: Path) -> None:
    with (tmp_path / "golden.npz").open("wb") as file:
        np.savez(file, text=np.array([["grün", "b"], ["", "d"]]), label=np.array([b"x", b"yy"]))
    tensors = fit(load_tensors(tmp_path / "golden.npz"), [TEXT])
    back = from_safetensors(to_safetensors(tensors))
    assert back["m/input/text"].tolist() == [["grün".encode(), b"b"], [b"", b"d"]]
    assert back["m/output/label"].tolist() == [b"x", b"yy"]
    assert to_safetensors(back) == to_safetensors(tensors)
    assert compare({"m/output/label": back["m/output/label"]}, back, 0, 0).max_error == 0


def test_other_text_is_a_mismatch() -> None:
    want, got = np.array([b"one", b"two"], dtype=object), np.array([b"one", b"six"], dtype=object)
    with pytest.raises(EdgeError) as caught:
        compare({"m/output/label": want}, {"m/output/label": got}, 0, 0)
    assert caught.value.code == "model.golden-mismatch"
    assert "b'six'" in caught.value.detail


def test_numbers_are_no_text_and_text_is_no_number() -> None:
    numbers = Member("m", "script", "s.py", (TensorSpec("text", "FP32", (-1,)),), ())
    for member, array in ((TEXT, np.zeros((1, 2), np.float32)), (numbers, np.array([b"x"], dtype=object))):
        with pytest.raises(EdgeError) as caught:
            fit({"text": array}, [member])
        assert caught.value.code == "artifact.golden-invalid"
