"""What images of modules are tried with: a Debian root, wheels of the lock, a registry, a container without engine."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.tree import PACKAGES, ROOT, tracked_files
from tests.support.images import Layout
from tests.support.net import free_port, is_listening, wait_until
from tests.support.processes import Child, child_process
from tests.support.require import require_program

_TOOL_S = 90.0
_START_S = 40.0
_RUN_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GLIBCS = ("2_5", "2_12", "2_17", "2_24", "2_27", "2_28", "2_31", "2_34")
_SERVING = '"event": "serving"'
_DEBIAN = ("base-files", "python3", "libstdc++6")


def run(argv: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run a program to its end, and give what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=_TOOL_S)
    assert done.returncode == 0, f"{argv[0]} ended with {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


def debian_root(folder: Path, architecture: str = "", *packages: str) -> Path:
    """A root file system of this machine's Debian with Python; unpacked and not configured, which takes seconds.

    Args:
        folder: Where it goes.
        architecture: In Debian's words; this machine's when empty.
        packages: More of them.
    """
    mmdebstrap = require_program("mmdebstrap")
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    policy = subprocess.run(["apt-cache", "policy"], capture_output=True, text=True, check=False).stdout
    found = re.search(rf" (http\S+) {re.escape(suite)}/main", policy)
    if not suite or found is None:
        pytest.skip("apt has no mirror of this machine's Debian over http")
    options = [f"--include={','.join((*_DEBIAN, *packages))}"]
    options += [f"--arch={architecture}"] if architecture else []
    run([mmdebstrap, "--quiet", "--variant=extract", *options, suite, folder, found[1]])
    return folder


def python_of(root: Path) -> str:
    """The version of a root's Python, like `3.11`."""
    return os.readlink(root / "usr/bin/python3").removeprefix("python")


def base_of(roots: Mapping[str, Path], folder: Path) -> Path:
    """An OCI layout with a root for each platform, as its one layer."""
    layout = Layout(folder)
    images = []
    for place, root in roots.items():
        command = ["tar", "-C", str(root), "--sort=name", "-c", "."]
        packed = subprocess.run(command, capture_output=True, check=True, timeout=_TOOL_S)
        images.append(layout.image(place, [packed.stdout]))
    layout.name(layout.index(images))
    return folder


def _closure(requirement: str) -> set[str]:
    """Names of all that installing this brings besides itself, by installed metadata."""
    found: set[str] = set()
    waiting, seen = [Requirement(requirement)], set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (wanted.name, extra) in seen:
                continue
            seen.add((wanted.name, extra))
            found.add(canonicalize_name(wanted.name))
            inner = [Requirement(line) for line in metadata.requires(wanted.name) or ()]
            waiting += [item for item in inner if item.marker is None or item.marker.evaluate({"extra": extra})]
    return found - {"lighterman"}


def wheelhouse(folder: Path, python: str, extras: str = "agent,azure,onnx", machines: Sequence[str] = ()) -> Path:
    """Our wheel, and those of the lock that an agent needs, checked by pip against their hashes.

    Args:
        folder: Where everything goes.
        python: Version of Python.
        extras: Of the agent.
        machines: In Linux' words; this one alone when empty.
    """
    source = folder / "source"
    for path in tracked_files():
        relative = path.relative_to(ROOT)
        if relative.parts[0] in PACKAGES or len(relative.parts) == 1:
            (source / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, source / relative)
    wheels = folder / "wheels"
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, source])
    names = _closure(f"lighterman[{extras}]")
    pins = re.findall(r"^(?:\S.*\\\n)(?:    .*\n)+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    wanted = [pin for pin in pins if canonicalize_name(re.split(r"[\[=]", pin)[0]) in names]
    (folder / "wanted.lock").write_text("".join(wanted))
    for machine in machines or (platform.machine(),):
        download(wheels, machine, python, folder / "wanted.lock")
    return wheels


def download(wheels: Path, machine: str, python: str, lock: Path) -> None:
    """Have pip fetch what a lock names, for one machine; skips where it cannot."""
    tags = [f"manylinux_{glibc}_{machine}" for glibc in _GLIBCS] + [f"manylinux2014_{machine}"]
    options = [part for tag in tags for part in ("--platform", tag)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    pip += ["--implementation", "cp", "--python-version", python, *options]
    command = [*pip, "--dest", str(wheels), "--requirement", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TOOL_S)
    if done.returncode != 0:
        pytest.skip(f"pip cannot download the wheels of the lock: {done.stderr.strip()[-300:]}")


@contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry with an empty store; gives `host:port`."""
    program, port = require_program("docker-registry"), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "store")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    with child_process([program, "serve", folder / "config.yml"], log_path=folder / "log") as child:
        wait_until(lambda: is_listening(port) or not child.is_running, _START_S, what="the registry to listen")
        assert child.is_running, child.tail()
        yield f"127.0.0.1:{port}"


@dataclass(frozen=True)
class Unpacked:
    """An image that umoci unpacked: a root file system, and a configuration for container runtimes.

    Attributes:
        folder: With `config.json` and `rootfs`.
        shared: Folders of this machine that a container has at the same places.
    """

    folder: Path
    shared: tuple[Path, ...] = ()

    @property
    def config(self) -> Any:
        """The configuration that umoci made of the image's."""
        return json.loads((self.folder / "config.json").read_bytes())

    @property
    def environment(self) -> dict[str, str]:
        """What a process of the container has for an environment."""
        return dict(item.split("=", 1) for item in self.config["process"]["env"])

    def contain(self, folder: Path, arguments: Sequence[str], variables: Mapping[str, str]) -> Path:
        """A copy of the configuration that runs these arguments; gives its folder.

        Args:
            folder: Where it goes; made here.
            arguments: Of the process; those of the image when there are none.
            variables: More environment.

        The container shares this machine's loopback and gets no control groups; it has a process namespace and mounts
        of its own, a read-only root, no capabilities and the image's user.
        """
        config = self.config
        process = config["process"]
        process |= {"terminal": False, "args": list(arguments) or process["args"], "noNewPrivileges": True}
        process["env"] += [f"{name}={value}" for name, value in variables.items()]
        process["capabilities"] = {}
        config["root"] = {"path": str(self.folder / "rootfs"), "readonly": True}
        config["linux"].pop("resources", None)
        kept = [item for item in config["linux"]["namespaces"] if item["type"] not in ("network", "cgroup")]
        config["linux"]["namespaces"] = kept
        config["mounts"] = [item for item in config["mounts"] if not item["destination"].startswith("/sys")]
        options = ["nosuid", "nodev", "mode=1777", "size=256m"]
        for place in ("/tmp", "/var/lib/lighterman"):
            config["mounts"] = [item for item in config["mounts"] if item["destination"] != place]
            config["mounts"].append({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options})
        for path in self.shared:
            bound = {"destination": str(path), "type": "bind", "source": str(path), "options": ["rbind", "rw"]}
            config["mounts"].append(bound)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder


# A machine with both versions of control groups is one that crun does not understand, and none of them is needed.
_CRUN = """
umount /sys/fs/cgroup/unified 2>/dev/null
exec "$0" --root "$1" --cgroup-manager=disabled run --bundle "$2" "$3"
"""
_CHROOT = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o nosuid,nodev,mode=1777,size=256m tmpfs "$1/tmp"
mount -o remount,bind,ro "$1"
exec chroot --userspec="$0" --groups= "$@"
"""


@contextmanager
def in_crun(image: Unpacked, folder: Path, *arguments: str, **variables: str) -> Iterator[Child]:
    """A container of the image, run by crun; without arguments it runs what the image says."""
    crun = require_program("crun")
    bundle = image.contain(folder / "bundle", arguments, variables)
    name = f"lighterman-{os.getpid()}-{threading.get_ident()}-{free_port()}"
    state = folder / "crun"
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _CRUN]
    try:
        with child_process([*command, crun, state, bundle, name], log_path=folder / "log", env=_plain()) as child:
            yield child
    finally:
        subprocess.run(
            [crun, "--root", state, "delete", "--force", name], capture_output=True, check=False, timeout=_TOOL_S
        )


@contextmanager
def in_chroot(image: Unpacked, folder: Path, *arguments: str) -> Iterator[Child]:
    """The image's files as a root, for machines where no container runtime runs: a chroot in namespaces of its own."""
    folder.mkdir(exist_ok=True)
    unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    command: list[str | Path] = [*unshare, "sh", "-c", _CHROOT, "65532:65532", image.folder / "rootfs"]
    environment = {**image.environment, "PATH": f"{image.environment['PATH']}:{_RUN_FOLDERS}"}
    with child_process([*command, *arguments], log_path=folder / "log", env=environment) as child:
        yield child
        child.kill()  # it takes process 1 of its namespace along, and so all of it; a polite signal it would ignore


def prediction(child: Child, deadline_s: float) -> tuple[str, list[float]]:
    """Wait for a service of the adder, and ask it; gives the digest of its manifest, and its answer to 1, 2, 3, 4."""
    wait_until(lambda: _SERVING in child.output() or not child.is_running, deadline_s, what="the service")
    assert child.is_running, child.tail()
    facts = json.loads(next(line for line in child.output().splitlines() if _SERVING in line))
    question = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    url = f"http://127.0.0.1:{facts['port']}/v2/models/digits/infer"
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(question).encode()), timeout=deadline_s
    ) as answer:
        return facts["manifest"], json.loads(answer.read())["outputs"][0]["data"]


def _plain() -> dict[str, str]:
    return {"PATH": _RUN_FOLDERS}
