"""Other people's tools move a bundle, and it stays the same bundle."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from packager.build import build
from packager.layout import Layout
from packager.progress import QuietReporter
from tests.support.require import require_program
from tests.unit.packager.support import make_spec

pytestmark = pytest.mark.system


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    platforms = ("linux/amd64", "linux/arm64", "linux/arm/v7")
    spec = make_spec(tmp_path / "model", platforms=platforms, hardware_ids=("board-1", "board-2"), release_counter=3)
    build(spec, tmp_path / "bundle", QuietReporter())
    return Layout(tmp_path / "bundle")


def copy(source: str, target: str) -> None:
    command = [require_program("skopeo"), "copy", "--quiet", "--all", "--insecure-policy", source, target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_copied_bundle_keeps_every_digest(tmp_path: Path, layout: Layout) -> None:
    copy(f"oci:{layout.folder}:1", f"oci:{tmp_path / 'copy'}:1")
    copied = Layout(tmp_path / "copy")
    assert copied.index_digest == layout.index_digest
    assert copied.index_data == layout.index_data
    assert [item.data for item in copied.bundles] == [item.data for item in layout.bundles]
    for blob in copied.blobs:
        copied.verify_blob(blob)


def test_a_copy_through_an_archive_keeps_every_digest(tmp_path: Path, layout: Layout) -> None:
    copy(f"oci:{layout.folder}:1", f"oci-archive:{tmp_path / 'bundle.tar'}:1")
    copy(f"oci-archive:{tmp_path / 'bundle.tar'}:1", f"oci:{tmp_path / 'copy'}:1")
    assert Layout(tmp_path / "copy").index_digest == layout.index_digest


def test_one_platform_can_be_taken_out(tmp_path: Path, layout: Layout) -> None:
    command = [require_program("skopeo"), "copy", "--quiet", "--insecure-policy", "--override-arch", "arm64"]
    command += [f"oci:{layout.folder}:1", f"oci:{tmp_path / 'copy'}:arm"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    entry = json.loads((tmp_path / "copy" / "index.json").read_text())["manifests"][0]
    assert entry["digest"] == str(layout.index.for_platform("linux/arm64").digest)
