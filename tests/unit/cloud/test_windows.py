"""Maintenance windows as people write them."""

from __future__ import annotations

import pytest

from cloud_registry.client.windows import parse_window
from edge_contract.deployment import Window
from edge_contract.errors import EdgeError


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("mon-fri 02:00-05:00", Window(120, 180, (1, 2, 3, 4, 5))),
        ("01:00-03:30", Window(60, 150)),
        ("daily 01:00-03:30", Window(60, 150)),
        ("sat,sun 22:00-04:00", Window(22 * 60, 360, (6, 7))),
        ("SUN 23:59-00:00", Window(23 * 60 + 59, 1, (7,))),
        ("fri-mon 00:00-24:00", Window(0, 1440, (1, 5, 6, 7))),
        ("wed,mon-tue,tue 12:00-11:59", Window(720, 1439, (1, 2, 3))),
        ("  thu 08:00-09:00 ", Window(480, 60, (4,))),
    ],
)
def test_a_window_is_read(text: str, window: Window) -> None:
    assert parse_window(text) == window
    assert Window.from_json(window.to_json()) == window


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mon",
        "2:00-5:00",
        "02:00",
        "02:00-02:00",
        "24:00-02:00",
        "02:60-03:00",
        "25:00-26:00",
        "00:00-24:01",
        "xyz 02:00-05:00",
        "mon- 02:00-05:00",
        "-mon 02:00-05:00",
        "mon,,tue 02:00-05:00",
        "02:00-05:00 mon",
        "x" * 100,
    ],
)
def test_what_is_no_window_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_window(text)
    assert caught.value.code == "config.invalid"
    assert "mon-fri" in caught.value.hint
