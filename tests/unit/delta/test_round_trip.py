"""Whatever the files, a delta makes exactly the new one; from any checkpoint on; and of that base alone."""

import io
from pathlib import Path

import numpy as np
import pytest

from edge_delta import decode as decoding
from edge_delta.decode import DeltaError, inspect
from packager.delta.encode import encode
from packager.delta.formats import Tensor
from tests.unit.delta.pairs import KINDS, FilePair, checkpoints, decoded, encoded, one_tensor, weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_makes_the_new_file_bit_for_bit(kind: str, tmp_path: Path) -> None:
    pair = KINDS[kind]()
    delta, result = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert result.bytes == len(delta)
    assert sum(result.kinds.values()) == result.new_bytes == len(pair.new)


@pytest.mark.parametrize(
    ("kind", "share"),
    [("row scale", 0.62), ("low rank", 0.15), ("grid", 0.10), ("f16", 0.45), ("i8", 0.30), ("sparse", 0.12)],
)
def test_what_can_be_predicted_takes_little(kind: str, share: float, tmp_path: Path) -> None:
    pair = KINDS[kind]()
    _, result = encoded(pair, tmp_path)
    assert result.bytes < share * len(pair.new)


def test_a_change_of_metadata_takes_less_than_two_hundred_bytes(tmp_path: Path) -> None:
    same = weights(400, 300)
    pair = one_tensor("f32", same, same, head=b"x" * 900 + b"version 41" + b"y" * 900)
    changed = FilePair(pair.base, pair.base.replace(b"version 41", b"version 42"), pair.base_tensors, pair.base_tensors)
    delta, _ = encoded(changed, tmp_path)
    assert decoded(changed.base, delta, len(changed.new)) == changed.new
    assert len(delta) < 200


@pytest.fixture
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CHECKPOINT_BYTES", 4_096)


@pytest.mark.usefixtures("frequent_checkpoints")
@pytest.mark.parametrize("kind", ["row scale", "low rank", "grid", "i8", "long rows", "opaque", "same"])
def test_decoding_goes_on_from_every_checkpoint(kind: str, tmp_path: Path) -> None:
    pair = KINDS[kind]()
    delta, _ = encoded(pair, tmp_path)
    _, found = checkpoints(pair.base, delta, len(pair.new))
    assert [item.output_bytes for item in found] == sorted({item.output_bytes for item in found})
    assert found[-1].output_bytes == len(pair.new)
    for point in found[:-1]:
        # What a run wrote behind its last checkpoint before the power failed is garbage.
        left = io.BytesIO(pair.new[: point.output_bytes] + b"garbage")
        assert decoded(pair.base, delta, len(pair.new), left, point.data) == pair.new


@pytest.mark.usefixtures("frequent_checkpoints")
def test_decoding_goes_on_within_what_stands_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "READ_BYTES", 4_096)
    pair = KINDS["row scale"]()
    (base,), (tensor,) = pair.base_tensors, pair.new_tensors
    length = tensor.end - tensor.start
    again = Tensor("again", tensor.dtype, tensor.shape, len(pair.new), len(pair.new) + length)
    twice = FilePair(pair.base, pair.new + pair.new[tensor.start : tensor.end], (base,), (tensor, again))
    delta, made = encoded(twice, tmp_path)
    assert made.kinds["again"] == length
    _, found = checkpoints(twice.base, delta, len(twice.new))
    assert sum(point.output_bytes > len(pair.new) for point in found) > 2
    for point in found[:-1]:
        left = io.BytesIO(twice.new[: point.output_bytes] + b"garbage")
        assert decoded(twice.base, delta, len(twice.new), left, point.data) == twice.new


@pytest.mark.usefixtures("frequent_checkpoints")
def test_a_checkpoint_of_another_delta_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    pair, other = KINDS["i8"](), KINDS["u8"]()
    delta, _ = encoded(pair, tmp_path)
    another, _ = encoded(other, tmp_path)
    point = checkpoints(pair.base, delta, len(pair.new))[1][0]
    with pytest.raises(DeltaError, match="another delta"):
        decoded(other.base, another, len(other.new), io.BytesIO(), point.data)
    for place in (0, 20, len(point.data) - 1):
        bad = bytearray(point.data)
        bad[place] ^= 1
        with pytest.raises(DeltaError, match="damaged"):
            decoded(pair.base, delta, len(pair.new), io.BytesIO(pair.new), bytes(bad))
    with pytest.raises(DeltaError, match="shorter than the checkpoint"):
        decoded(pair.base, delta, len(pair.new), io.BytesIO(pair.new[:100]), point.data)


@pytest.mark.usefixtures("frequent_checkpoints")
def test_a_checkpoint_of_another_delta_between_the_same_files_is_refused(tmp_path: Path) -> None:
    pair = KINDS["low rank"]()
    delta, _ = encoded(pair, tmp_path)
    paths = (tmp_path / "base", tmp_path / "new", tmp_path / "other")
    encode(*paths, base_tensors=pair.base_tensors, new_tensors=pair.new_tensors, effort=0)
    other = paths[2].read_bytes()
    assert other != delta
    point = checkpoints(pair.base, delta, len(pair.new))[1][0]
    left = io.BytesIO(pair.new[: point.output_bytes])
    with pytest.raises(DeltaError, match="another delta"):
        decoded(pair.base, other, len(pair.new), left, point.data)


@pytest.mark.usefixtures("frequent_checkpoints")
def test_between_checkpoints_numpy_warns_as_it_did(tmp_path: Path) -> None:
    pair = KINDS["row scale"]()
    delta, _ = encoded(pair, tmp_path)
    base, new_bytes = pair.base, len(pair.new)
    with np.errstate(all="raise"):
        before = np.geterr()
        two = [
            decoding.decode(
                io.BytesIO(base), io.BytesIO(delta), io.BytesIO(), base_bytes=len(base), new_bytes=new_bytes
            )
            for _ in range(2)
        ]
        for _ in zip(*two, strict=True):
            assert np.geterr() == before


def test_too_little_memory_says_nothing_of_the_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)

    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "Lanes", short)
    with pytest.raises(MemoryError):
        decoded(pair.base, delta, len(pair.new))


@pytest.mark.usefixtures("frequent_checkpoints")
def test_an_output_that_rotted_before_a_checkpoint_is_noticed_at_its_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("edge_delta.streams", "edge_delta.wire", "packager.delta.encode"):
        monkeypatch.setattr(f"{module}.UNIT_BYTES", 8_192)
    pair = KINDS["row scale"]()
    delta, _ = encoded(pair, tmp_path)
    _, found = checkpoints(pair.base, delta, len(pair.new))
    assert found[-1].verified_bytes == len(pair.new) // 8_192 * 8_192
    point = found[1]
    rotten = bytearray(pair.new[: point.output_bytes])
    rotten[5] ^= 1
    with pytest.raises(DeltaError, match="differs in its part 1"):
        decoded(pair.base, delta, len(pair.new), io.BytesIO(bytes(rotten)), point.data)


def test_another_base_of_the_same_length_never_goes_unnoticed_by_the_digest_of_the_output(tmp_path: Path) -> None:
    pair = KINDS["row scale"]()
    delta, _ = encoded(pair, tmp_path)
    other = bytearray(pair.base)
    other[4_000] ^= 0x80
    try:
        made = decoded(bytes(other), delta, len(pair.new))
    except DeltaError:
        return
    assert made != pair.new


def test_lengths_that_are_not_those_of_the_delta_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)
    with pytest.raises(DeltaError, match="the delta is from"):
        decoded(pair.base, delta, len(pair.new) + 1)
    with pytest.raises(DeltaError, match="the delta is from"):
        decoded(pair.base + b"x", delta, len(pair.new))


def test_a_delta_says_what_it_is(tmp_path: Path) -> None:
    pair = KINDS["low rank"]()
    delta, result = encoded(pair, tmp_path)
    info = inspect(io.BytesIO(delta))
    assert (info.base_bytes, info.new_bytes) == (len(pair.base), len(pair.new))
    assert info.operations == result.kinds
    assert info.peak_bytes == result.peak_bytes <= 16 * 1024 * 1024
    with pytest.raises(DeltaError, match="no delta"):
        inspect(io.BytesIO(b"something else"))


def test_the_same_files_give_the_same_delta(tmp_path: Path) -> None:
    pair = KINDS["low rank"]()
    assert encoded(pair, tmp_path)[0] == encoded(pair, tmp_path)[0]


def test_tensors_are_found_by_shape_when_their_names_changed(tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    (tensor,) = pair.new_tensors
    renamed = type(tensor)("onnx::Conv_110", tensor.dtype, tensor.shape, tensor.start, tensor.end)
    _, before = encoded(pair, tmp_path)
    _, after = encoded(FilePair(pair.base, pair.new, pair.base_tensors, (renamed,)), tmp_path)
    assert after.bytes == before.bytes


def test_a_base_in_reverse_order_is_still_a_base(tmp_path: Path) -> None:
    one, two = weights(seed=20), weights(40, 50, seed=21)
    change = np.float32(1e-4)
    base_tensors = (
        Tensor("a", "f32", one.shape, 0, one.nbytes),
        Tensor("b", "f32", two.shape, one.nbytes, one.nbytes + two.nbytes),
    )
    new_tensors = (
        Tensor("b", "f32", two.shape, 0, two.nbytes),
        Tensor("a", "f32", one.shape, two.nbytes, one.nbytes + two.nbytes),
    )
    pair = FilePair(
        one.tobytes() + two.tobytes(), (two + change).tobytes() + (one * 2).tobytes(), base_tensors, new_tensors
    )
    delta, result = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert result.kinds["predicted"] == len(pair.new)
