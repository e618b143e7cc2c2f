"""Memory does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.require import REPOSITORY_ROOT
from tests.unit.packager.support import model_proto, write_golden

MODEL_BYTES = 192 * 2**20
GROWTH_BYTES_MAX = 24 * 2**20

BUILD = """
import json, sys
from pathlib import Path
from packager.cli import main
code = main(["build", "--model", "big", "--version", "1", "--file", sys.argv[1], "--out", sys.argv[2], "--json"])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"code": code, "peak": int(peak.split()[1]) * 1024}), file=sys.stderr)
"""


def write_big_model(path: Path, size: int) -> None:
    """A valid ONNX file with a weight of `size` bytes, written without ever being in memory; the weight is a hole."""
    proto = model_proto()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [4, size // 16]
    head = proto.graph.SerializeToString()
    plain = tensor.SerializeToString()
    del proto.graph.initializer[:]
    rest = proto.graph.SerializeToString()
    assert len(head) > len(rest)
    weight = plain + b"\x4a" + _varint(size)  # field 9, raw_data
    graph_size = len(rest) + 1 + len(_varint(len(weight) + size)) + len(weight) + size
    proto.ClearField("graph")
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + b"\x3a" + _varint(graph_size) + rest)
        file.write(b"\x2a" + _varint(len(weight) + size) + weight)
        file.truncate(file.tell() + size)


def _varint(value: int) -> bytes:
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*raw, value])


def peak_of_build(model: Path, out: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(model), str(out)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY_ROOT,
        check=True,
    )
    result = json.loads(done.stderr.strip().splitlines()[-1])
    assert result["code"] == 0, done.stdout
    assert json.loads(done.stdout)["bytes"] > model.stat().st_size
    return int(result["peak"])


@pytest.mark.slow
def test_building_a_large_model_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    small, big = tmp_path / "small.onnx", tmp_path / "big.onnx"
    write_big_model(small, 4096)
    write_big_model(big, MODEL_BYTES)
    base = peak_of_build(small, tmp_path / "a")
    grown = peak_of_build(big, tmp_path / "b") - base
    assert grown < GROWTH_BYTES_MAX, f"{grown / 2**20:.0f} MiB more for {MODEL_BYTES / 2**20:.0f} MiB of model"


def test_golden_vectors_beyond_their_limit_are_refused(tmp_path: Path) -> None:
    from edge_contract.errors import EdgeError
    from packager.golden import load_tensors

    path = write_golden(tmp_path / "golden.npz")
    with path.open("ab") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(EdgeError) as caught:
        load_tensors(path)
    assert caught.value.code == "artifact.golden-invalid"
