"""Description files and flags: what they give, and how hostile or mistaken ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_contract.errors import EdgeError
from packager.spec import Flags, Spec
from packager.specload import load_spec
from tests.unit.packager.support import write_golden, write_model, write_wheel

GOOD = """
platforms = ["linux/arm64", "linux/amd64", "linux/arm64"]
[model]
name = "linear"
version = 3
description = "a line"
tags = { team = "one" }
hardware_ids = ["board-2"]
release_counter = 7
[model.lineage]
git_commit = "abc"
[members.linear]
file = "model.onnx"
options = { threads = "2" }
[golden]
file = "golden.npz"
rtol = 0.01
[serving]
probation_ms = 100
sampling_ratio = 0.5
config = { MODE = "fast" }
[docs]
files = ["README.md"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    write_model(home)
    write_golden(home / "golden.npz")
    (home / "README.md").write_text("a model")
    (home / "lib").mkdir()
    (home / "lib" / "tool.py").write_text("x = 1")
    (home / "score.py").write_text("def run(data): return data")
    (tmp_path / "secret.txt").write_text("secret")
    return home


def load(folder: Path, text: str, flags: Flags | None = None, root: Path | None = None) -> Spec:
    file = folder / "lighterman.toml"
    file.write_text(text)
    return load_spec(file, flags or Flags(), root)


def refusal(folder: Path, text: str) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        load(folder, text)
    return caught.value


def test_everything_in_a_file_is_taken(folder: Path) -> None:
    spec = load(folder, GOOD)
    assert (spec.name, spec.version, spec.release_counter, spec.hardware_ids) == ("linear", 3, 7, ("board-2",))
    assert spec.platforms == ("linux/amd64", "linux/arm64")
    assert spec.members[0].entry.path == "model.onnx"
    assert spec.members[0].options == {"threads": "2"}
    assert spec.golden is not None
    assert (spec.golden.rtol, spec.golden.atol) == (0.01, 1e-4)
    assert (spec.serving.probation_ms, spec.serving.sampling_ratio) == (100, 0.5)
    assert spec.serving.config == {"MODE": "fast"}
    assert [item.path for item in spec.about.docs] == ["README.md"]
    assert spec.about.lineage == {"git_commit": "abc"}


def test_a_flag_wins_over_the_file(folder: Path) -> None:
    spec = load(
        folder, GOOD, Flags(version=9, platforms=("linux/arm/v7",), rtol=0.5, config={"MORE": "1"}, tags={"x": "y"})
    )
    assert (spec.version, spec.platforms) == (9, ("linux/arm/v7",))
    assert spec.golden is not None
    assert spec.golden.rtol == 0.5
    assert spec.serving.config == {"MODE": "fast", "MORE": "1"}
    assert spec.about.tags == {"team": "one", "x": "y"}


def test_flags_alone_describe_a_set_of_models(folder: Path) -> None:
    model = folder / "model.onnx"
    spec = load_spec(None, Flags(name="pair", members=(("one", model), ("two", model))))
    assert [member.entry.path for member in spec.members] == ["one/model.onnx", "two/model.onnx"]


def test_members_of_a_file_keep_apart(folder: Path) -> None:
    spec = load(folder, '[model]\nname = "pair"\n[members.a]\nfile = "model.onnx"\n[members.b]\nfile = "model.onnx"\n')
    assert [member.entry.path for member in spec.members] == ["a/model.onnx", "b/model.onnx"]


def test_two_members_of_one_name_are_refused(folder: Path) -> None:
    model = folder / "model.onnx"
    with pytest.raises(EdgeError, match="two members have the name 'same'"):
        load_spec(None, Flags(name="pair", members=(("same", model), ("same", model))))
    assert refusal(folder, GOOD + '[members.linear]\nfile = "model.onnx"\n').code == "config.invalid"


SHORT = '[model]\nname = "linear"\n[members.linear]\nfile = "model.onnx"\n'

MISTAKES = {
    "not toml": ("name = = 1", "config.invalid", "not valid TOML"),
    "not utf-8": ("# \udc80", "config.invalid", "not valid TOML"),
    "no model": ('[members.a]\nfile = "model.onnx"', "config.invalid", "model"),
    "no members": ('[model]\nname = "a"', "config.invalid", "members"),
    "empty members": ('[model]\nname = "a"\n[members]', "config.invalid", "members"),
    "model is a list": ('model = []\n[members.a]\nfile = "model.onnx"', "config.invalid", "model"),
    "odd name": (SHORT.replace('"linear"', '"Linear Model"'), "cloud.name-invalid", "model.name"),
    "name with a slash": (SHORT.replace('"linear"', '"a/b"'), "cloud.name-invalid", "model.name"),
    "unknown key": (SHORT + "[serving]\nprobation = 5", "config.invalid", "'probation'"),
    "unknown table": (SHORT + "[sampling]\nratio = 5", "config.invalid", "'sampling'"),
    "wrong type": (SHORT + '[serving]\nprobation_ms = "5"', "config.invalid", "probation_ms"),
    "negative": (SHORT + "[serving]\nprobation_ms = -1", "config.invalid", "probation_ms"),
    "ratio above one": (SHORT + "[serving]\nsampling_ratio = 1.5", "config.invalid", "sampling_ratio"),
    "nan tolerance": (SHORT + '[golden]\nfile = "golden.npz"\nrtol = nan', "config.invalid", "rtol"),
    "unknown platform": ('platforms = ["windows/amd64"]\n' + SHORT, "cloud.name-invalid", "platforms"),
    "unknown engine": (SHORT + 'engine = "torch"', "config.invalid", "members.linear.engine"),
    "unknown option": (SHORT + 'options = { gpu = "1" }', "config.invalid", "'gpu'"),
    "odd option": (SHORT + 'options = { threads = "many" }', "config.invalid", "threads"),
    "unknown datatype": (
        SHORT + 'inputs = [{ name = "x", datatype = "FLOAT", shape = [1] }]',
        "config.invalid",
        "members.linear.inputs",
    ),
    "missing model": (SHORT.replace("model.onnx", "nothing.onnx"), "config.file-missing", "members.linear.file"),
    "model is a folder": (SHORT.replace('"model.onnx"', '"lib"'), "config.invalid", "members.linear.file"),
    "missing golden": (SHORT + '[golden]\nfile = "nothing.npz"', "config.file-missing", "golden.file"),
    "missing doc": (SHORT + '[docs]\nfiles = ["NOTICE"]', "config.file-missing", "docs.files"),
    "code is a file": (
        SHORT.replace("model.onnx", "score.py") + '[code]\nfolders = ["score.py"]',
        "config.invalid",
        "code.folders",
    ),
    "code without script": (SHORT + '[code]\nfolders = ["lib"]', "config.invalid", "scripts"),
    "unresolved requirements": (
        SHORT.replace("model.onnx", "score.py") + '[dependencies]\nrequirements = "README.md"',
        "config.invalid",
        "dependencies.requirements",
    ),
    "two files of one path": (
        SHORT + 'files = [{ source = "README.md", path = "MODEL.onnx" }]',
        "config.invalid",
        "both",
    ),
    "reserved folder": (SHORT + 'path = "lighterman/model.onnx"', "config.invalid", "members.linear.path"),
    "reserved wheels": (SHORT + 'path = "Wheels/model.onnx"', "config.invalid", "members.linear.path"),
    "unknown lineage": (
        SHORT.replace("[members", '[model.lineage]\nauthor = "me"\n[members'),
        "config.invalid",
        "lineage",
    ),
    "hardware id with comma": (
        SHORT.replace('"linear"\n', '"linear"\nhardware_ids = ["a,b"]\n', 1),
        "config.invalid",
        "hardware id",
    ),
}


@pytest.mark.parametrize(("text", "code", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_names_file_and_key(folder: Path, text: str, code: str, named: str) -> None:
    file = folder / "lighterman.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(EdgeError) as caught:
        load_spec(file, Flags())
    assert caught.value.code == code
    assert "lighterman.toml" in caught.value.detail
    assert named in caught.value.detail


@pytest.mark.parametrize(
    "path", ["../secret.txt", "/etc/hostname", "lib/../../secret.txt", "link.txt", "linked/secret.txt"]
)
@pytest.mark.parametrize(
    "place",
    [
        '[docs]\nfiles = ["{}"]',
        '[golden]\nfile = "{}"',
        '[members.more]\nfile = "{}"\nengine = "onnx"',
        '[dependencies]\nwheels = ["{}"]',
    ],
)
def test_sources_stay_below_the_file(folder: Path, place: str, path: str) -> None:
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "linked").symlink_to(folder.parent)
    error = refusal(folder, SHORT + place.format(path))
    assert error.code == "artifact.path-unsafe"


def test_patterns_of_wheels_stay_below_the_file(folder: Path) -> None:
    write_wheel(folder.parent, "a-1-py3-none-any.whl", {"a.py": ""})
    text = SHORT + '[dependencies]\nwheels = ["../*.whl"]'
    assert refusal(folder, text).code == "artifact.path-unsafe"


def test_a_wider_root_may_be_allowed_by_who_runs_it(folder: Path) -> None:
    text = SHORT + '[docs]\nfiles = ["../secret.txt"]'
    assert load(folder, text, root=folder.parent).about.docs[0].path == "secret.txt"


@pytest.mark.parametrize("path", ["../m.onnx", "/m.onnx", "a//m.onnx", "a/./m.onnx", "a\\\\b", "m\\u0000", "x" * 300])
def test_paths_in_the_bundle_are_plain(folder: Path, path: str) -> None:
    assert refusal(folder, SHORT + f'path = "{path}"').code in ("artifact.path-unsafe", "config.invalid")


def test_a_huge_file_is_not_read(folder: Path) -> None:
    (folder / "lighterman.toml").write_text("#" * (2**20 + 1))
    with pytest.raises(EdgeError, match="larger than"):
        load_spec(folder / "lighterman.toml", Flags())


def test_nothing_to_build_says_what_to_do() -> None:
    with pytest.raises(EdgeError) as caught:
        load_spec(None, Flags())
    assert caught.value.code == "config.invalid"
    assert "--spec" in caught.value.hint


def test_a_tolerance_needs_vectors(folder: Path) -> None:
    with pytest.raises(EdgeError, match="golden"):
        load_spec(None, Flags(name="linear", members=(("", folder / "model.onnx"),), rtol=0.1))
