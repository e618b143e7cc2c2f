"""The command line: help that teaches, errors with their code, machine output, light start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from packager.cli import cli, main
from tests.support.require import REPOSITORY_ROOT
from tests.unit.packager import plain_yaml
from tests.unit.packager.support import write_golden, write_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("LIGHTERMAN_URL", "LIGHTERMAN_TOKEN", "LIGHTERMAN_KEYS", "LIGHTERMAN_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    write_model(tmp_path)
    write_golden(tmp_path / "golden.npz")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Exit code and the JSON that was printed."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


BUILD = ("build", "--model", "linear", "--version", "1", "--file", "model.onnx", "--golden", "golden.npz", "--out", "b")


def test_build_inspect_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, built = run(capsys, *BUILD)
    assert (code, built["model"], built["version"]) == (0, "linear", 1)
    code, facts = run(capsys, "inspect", "b")
    assert code == 0
    assert [item["platform"] for item in facts["platforms"]] == ["linux/amd64", "linux/arm64"]
    assert facts["platforms"][0]["manifest"] == built["manifests"]["linux/amd64"]
    assert facts["platforms"][0]["runtime"]["members"][0]["inputs"][0]["name"] == "x"
    code, verdict = run(capsys, "verify", "b")
    assert (code, verdict["is_passed"]) == (0, True)
    assert {check["name"]: check["verdict"] for check in verdict["checks"]}["golden run"] == "passed"


def test_text_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(BUILD)) == 0
    assert "built linear:1" in capsys.readouterr().out
    assert main(["inspect", "b"]) == 0
    assert "x: FP32 [?, 4]" in capsys.readouterr().out
    assert main(["verify", "b"]) == 0
    assert "passed   golden run" in capsys.readouterr().out


def test_verify_ends_with_the_code_of_the_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(BUILD)) == 0
    capsys.readouterr()
    _, facts = run(capsys, "inspect", "b")
    layer = facts["platforms"][0]["layers"][0]
    path = folder / "b" / "blobs" / "sha256" / layer["digest"][7:]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    code, verdict = run(capsys, "verify", "b")
    assert (code, verdict["is_passed"]) == (4, False)
    failed = [check for check in verdict["checks"] if check["verdict"] == "failed"]
    assert failed[0]["code"] == "artifact.digest-mismatch"
    assert "model.onnx" in failed[0]["detail"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("build", "--out", "b"), 2, "config.invalid"),
        (("build", "--model", "m", "--version", "1", "--file", "none.onnx", "--out", "b"), 2, "config.file-missing"),
        (("build", "--model", "M M", "--version", "1", "--file", "model.onnx", "--out", "b"), 8, "cloud.name-invalid"),
        (("build", "--model", "m", "--version", "0", "--file", "model.onnx", "--out", "b"), 2, "config.invalid"),
        (("build", "--model", "m", "--version", "1", "--file", "bad.onnx", "--out", "b"), 4, "artifact.not-a-model"),
        ((*BUILD, "--config", "novalue"), 2, "config.invalid"),
        ((*BUILD, "--config", "a=1", "--config", "a=2"), 2, "config.invalid"),
        ((*BUILD, "--nonsense"), 2, "config.invalid"),
        (("inspect", "nowhere"), 2, "config.file-missing"),
        (("inspect", "linear:1"), 2, "config.invalid"),
        (("verify", "."), 2, "config.file-missing"),
        (("push", "b", "--url", "http://127.0.0.1:9"), 2, "config.file-missing"),
        (("register", "model.onnx", "--name", "linear"), 2, "config.invalid"),
        (("deploy", "linear", "--condition", "*", "--url", "http://127.0.0.1:9"), 2, "config.invalid"),
        (("deploy", "linear:1", "--condition", "*", "--url", "http://127.0.0.1:9"), 7, "network.unreachable"),
        (("keys", "list", "nokeys"), 2, "config.file-missing"),
        (("keys", "init", "k", "--url", "ftp://x", "--insecure-no-passphrase"), 2, "config.invalid"),
        (("nonsense",), 2, "config.invalid"),
    ],
)
def test_an_error_has_a_code_for_programs_and_for_shells(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], exit_code: int, code: str
) -> None:
    (folder / "bad.onnx").write_bytes(b"not a model")
    found, document = run(capsys, *arguments)
    assert document["error"]["code"] == code
    assert document["error"]["detail"]
    assert found == exit_code


def test_a_golden_mismatch_is_told_to_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_golden(folder / "golden.npz", error=1.0)
    assert main(list(BUILD)) == 5
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "[model.golden-mismatch]" in message
    assert "tolerance" in message


def test_a_description_in_the_folder_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "lighterman.toml").write_text('[model]\nname = "found"\n[members.found]\nfile = "model.onnx"\n')
    code, built = run(capsys, "build", "--version", "4", "--out", "b")
    assert (code, built["model"], built["version"]) == (0, "found", 4)


def test_the_time_of_creation_comes_from_the_environment(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert run(capsys, *BUILD)[0] == 0
    assert run(capsys, "inspect", "b")[1]["platforms"][0]["modelpack"]["descriptor"]["createdAt"].startswith("2023-")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert run(capsys, *BUILD)[1]["error"]["code"] == "config.invalid"


def test_a_bug_does_not_look_like_a_refusal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr("packager.build.build", broken)
    assert main([*BUILD, "--json"]) == 70
    output = capsys.readouterr()
    assert json.loads(output.out)["error"]["code"] == "internal.bug"
    assert "nobody thought of this" in output.err


def test_new_keys_need_a_pass_phrase(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edge_contract.errors import EdgeError
    from packager.commands.common import ring_maker

    with pytest.raises(EdgeError, match="none was given") as caught:
        ring_maker(None).choose()
    assert "--insecure-no-passphrase" in caught.value.hint
    assert ring_maker(None, is_insecure=True).choose() == ""
    (folder / "short").write_text("short\n")
    with pytest.raises(EdgeError, match="at least 8"):
        ring_maker(folder / "short").choose()
    (folder / "long").write_text("long enough\nsecond line")
    assert ring_maker(folder / "long").choose() == "long enough"


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += every_command(command, (*path, name))
    return found


@pytest.mark.parametrize(
    ("path", "command"), every_command(cli), ids=["-".join(path) for path, _ in every_command(cli)]
)
def test_every_command_and_option_explains_itself(
    path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    assert f"Usage: packager {' '.join(path)}" in capsys.readouterr().out
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or isinstance(parameter.type, click.Choice) or parameter.show_default, parameter.name


def test_a_pipeline_file_is_written_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "ci", "github") == (0, {"file": ".github/workflows/ship-model.yml"})
    content = plain_yaml.read((folder / ".github" / "workflows" / "ship-model.yml").read_text())
    assert content["jobs"]["ship"]["steps"]
    assert run(capsys, "ci", "github")[0] == 2
    assert run(capsys, "ci", "github", "--force")[0] == 0


def test_help_starts_without_anything_heavy() -> None:
    script = (
        "import sys\nfrom packager.cli import main\nmain(['ship', '--help'])\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'tuf', 'securesystemslib', 'cryptography', 'rich', 'httpx'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY_ROOT
    )
    assert done.stderr.strip() == "[]"


HOLDS = """
import sys, tempfile, time
import packager.cli
@packager.cli.cli.command("hold")
def hold():
    with tempfile.TemporaryDirectory(prefix="held-") as folder:
        print(folder, flush=True)
        time.sleep(60)
sys.argv = ["packager", "hold"]
sys.exit(packager.cli.main())
"""


def test_what_is_terminated_leaves_no_temporary_folder() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.terminate()
        assert process.wait(30) == 143
    assert not folder.exists()


def test_no_telemetry_of_the_runtime(tmp_path: Path) -> None:
    """Without CI in the environment, because the runtime keeps still under CI by itself."""
    home = tmp_path / "home"
    home.mkdir()
    write_model(tmp_path)
    write_golden(tmp_path / "golden.npz")
    environment = {
        key: value for key, value in os.environ.items() if key not in ("CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY")
    }
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(REPOSITORY_ROOT)}
    subprocess.run(
        [sys.executable, "-m", "packager.cli", *BUILD], check=True, cwd=tmp_path, env=environment, capture_output=True
    )
    assert (tmp_path / "b" / "index.json").exists()
    assert list(home.rglob("*")) == []
