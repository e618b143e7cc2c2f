"""What an author writes about MQTT topics is what the bundle's descriptor says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_contract.bindings import Binding
from edge_contract.errors import EdgeError
from edge_contract.runtime import Runtime
from packager.build import build
from packager.inspection import inspect, render
from packager.layout import Layout
from packager.progress import QuietReporter
from packager.spec import Flags, Spec
from packager.specload import load_spec
from tests.unit.packager.support import write_model

PLAIN = Binding("digits", "digits", "sensors/{device}/x", "out/{device}/y", "out/{device}/y/error")


def spec(folder: Path, bindings: str, flags: Flags | None = None) -> Spec:
    write_model(folder)
    file = folder / "lighterman.toml"
    file.write_text(
        f'[model]\nname = "digits"\nversion = 1\n[members.digits]\nfile = "model.onnx"\n{bindings}', encoding="utf-8"
    )
    return load_spec(file, flags or Flags())


def test_the_short_form_is_enough_for_one_model(tmp_path: Path) -> None:
    short = '[[bindings]]\ninput_topic = "sensors/{device}/x"\noutput_topic = "out/{device}/y"\n'
    assert spec(tmp_path, short).bindings == (PLAIN,)


def test_flags_say_it_without_a_file(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    flags = Flags(name="digits", members=(("", model),), bindings=(("sensors/{device}/x", "out/{device}/y"),))
    assert load_spec(None, flags).bindings == (PLAIN,)
    two = Flags(name="d", members=(("a", model), ("b", model)), bindings=(("in", "out"),))
    with pytest.raises(EdgeError) as caught:
        load_spec(None, two)
    assert caught.value.code == "config.invalid"


def test_a_bundle_carries_its_bindings_and_shows_them(tmp_path: Path) -> None:
    built = spec(
        tmp_path,
        '[[bindings]]\ninput_topic = "t/x"\noutput_topic = "t/y"\nform = "tensor"\nanswer = "tensor"\nretain = true\n',
    )
    build(built, tmp_path / "out", QuietReporter(), None)
    layout = Layout(tmp_path / "out")
    runtime: Runtime = layout.bundles[0].runtime
    assert runtime.bindings == built.bindings
    assert runtime.bindings[0].retain
    facts = inspect(layout)
    assert facts["platforms"][0]["runtime"]["bindings"][0]["form"] == "tensor"
    assert "binding digits: t/x -> t/y (tensor, asks digits)" in render(facts)


@pytest.mark.parametrize(
    ("bindings", "says"),
    [
        ('[[bindings]]\ninput_topic = "t/x"\n', "output_topic"),
        ('[[bindings]]\ninput_topic = "t/#"\noutput_topic = "t/y"\n', "go round"),
        ('[[bindings]]\ninput_topic = "t/x"\noutput_topic = "t/y"\ncolour = "red"\n', "colour"),
        ('[[bindings]]\ninput_topic = "t/x"\noutput_topic = "t/y"\nmember = "other"\n', "no member"),
        ('[[bindings]]\ninput_topic = "t/x"\noutput_topic = "t/y"\nform = "bytes"\n', "BYTES"),
        ("[bindings]\nx = 1\n", "bindings"),
    ],
)
def test_what_cannot_work_is_refused_on_the_authors_machine(tmp_path: Path, bindings: str, says: str) -> None:
    with pytest.raises(EdgeError) as caught:
        build(spec(tmp_path, bindings), tmp_path / "out", QuietReporter(), None)
    assert caught.value.category == "config"
    assert says in str(caught.value)
