"""What a deployment would bring over the network: sums that can be checked by hand."""

from edge_contract.delta import Delta
from edge_contract.digest import Digest
from packager.delta.forecast import Content, Start, forecast

OLD, NEW, SAME, ODD = (Digest.of(name) for name in (b"old", b"new", b"same", b"odd"))
HELD = Content({OLD: 1_000, SAME: 500})
WANTED = Content({NEW: 1_000, SAME: 500, ODD: 100})
DELTA = Delta(OLD, 1_000, NEW, 1_000, Digest.of(b"delta"), 250, 1)


def test_what_a_device_holds_is_not_sent_and_a_delta_takes_the_place_of_a_file() -> None:
    found = forecast([Start("m:1", "linux/arm64", 10, HELD, WANTED)], [DELTA], link_kbps=8)
    (row,) = found["rows"]
    assert (row["bytes"], row["bytes_full"], row["by"]) == (350, 1_100, "delta")
    assert (row["bytes_in_all"], found["bytes"], found["bytes_full"]) == (3_500, 3_500, 11_000)
    assert (row["seconds"], row["seconds_full"]) == (0.3, 1.1)  # 8 kbit/s are 1,000 bytes a second


def test_without_a_delta_or_a_known_base_whole_files_are_sent() -> None:
    starts = [
        Start("m:2", "linux/arm64", 2, Content({ODD: 100}), WANTED),
        Start("nothing known", "", 3, None, WANTED),
    ]
    found = forecast(starts, [DELTA], 1_000)
    assert [(row["by"], row["bytes"]) for row in found["rows"]] == [("full", 1_500), ("full", 1_600)]
    assert found["devices"] == 5


def test_the_smallest_of_several_deltas_counts_and_one_to_another_file_does_not() -> None:
    from_same = Delta(SAME, 500, NEW, 1_000, Digest.of(b"smaller"), 90, 1)
    elsewhere = Delta(OLD, 1_000, Digest.of(b"third"), 1_000, Digest.of(b"tiny"), 5, 1)
    found = forecast([Start("m:1", "linux/arm64", 1, HELD, WANTED)], [DELTA, from_same, elsewhere], 1_000)
    assert found["rows"][0]["bytes"] == 190


def test_devices_without_numpy_are_counted_with_whole_files() -> None:
    found = forecast([Start("m:1", "linux/arm/v7", 10, HELD, WANTED)], [DELTA], 1_000)
    assert (found["rows"][0]["by"], found["rows"][0]["bytes"]) == ("full", 1_100)


def test_a_platform_without_a_bundle_gets_nothing() -> None:
    found = forecast([Start("m:1", "linux/arm/v7", 4, HELD, None)], [DELTA], 1_000)
    assert (found["rows"][0]["by"], found["bytes"]) == ("nothing", 0)
