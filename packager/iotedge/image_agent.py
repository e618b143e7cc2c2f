"""The agent in an image: a virtual environment at /opt/lighterman on the base's interpreter, written file by file."""

import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

from edge_contract.errors import EdgeError
from packager.iotedge.image_layer import READABLE, RUNNABLE, File, Layer, link, text_file, write_layer
from packager.iotedge.image_limits import MEMBERS_SEEN_MAX
from packager.iotedge.image_python import Interpreter
from packager.iotedge.image_wheels import ChosenWheel, WheelFile, files_of
from packager.layout import LayoutWriter

HOME: Final = "/opt/lighterman"
PROGRAM: Final = f"{HOME}/bin/edge-agent"
DATA: Final = "/var/lib/lighterman"
USER: Final = 65532
"""Number of the user that modules run as; not root, and nobody whom a base knows."""

_PROGRAM: Final = """#!{home}/bin/python3
import sys

from edge_agent.cli import main

sys.exit(main())
"""
_SETTINGS: Final = """home = {folder}
include-system-site-packages = {is_open}
version = 3.{minor}
executable = {path}
"""


def write_agent_layer(
    writer: LayoutWriter,
    wheels: Iterable[ChosenWheel],
    interpreter: Interpreter,
    is_open: bool,
    is_compressed: bool,
) -> Layer:
    """Write the layer with the agent.

    Args:
        writer: The layout it goes to.
        wheels: The agent's and those that it needs.
        interpreter: The base's, which the environment is made upon.
        is_open: Whether packages of the base can be imported too.
        is_compressed: See `write_layer`.

    Raises:
        EdgeError: `config.invalid` for two wheels with different files at one place; as `files_of` and `write_layer`.
    """
    with ExitStack() as stack:
        files = [_environment(interpreter, is_open)]
        site = f"{HOME.lstrip('/')}/lib/python3.{interpreter.minor}/site-packages"
        placed: dict[str, WheelFile] = {}
        for wheel in wheels:
            for file in files_of(stack.enter_context(zipfile.ZipFile(wheel.path))):
                other = placed.setdefault(file.path, file)
                if other.sha256 != file.sha256:
                    raise EdgeError("config.invalid", f"{wheel.path.name} and another wheel both have {file.path}")
        if len(placed) > MEMBERS_SEEN_MAX:
            raise EdgeError("config.invalid", f"the wheels hold {len(placed)} files, more than {MEMBERS_SEEN_MAX}")
        files.append([_file(site, file) for file in placed.values()])
        return write_layer(writer, (file for group in files for file in group), is_compressed)


def _file(site: str, file: WheelFile) -> File:
    return File(f"{site}/{file.path}", file.chunks, file.size, mode=RUNNABLE if file.is_program else READABLE)


def _environment(interpreter: Interpreter, is_open: bool) -> list[File]:
    """What makes it a virtual environment (`venv`): the interpreter by a link, its settings, and the program."""
    home = HOME.lstrip("/")
    settings = _SETTINGS.format(
        folder=interpreter.folder,
        is_open="true" if is_open else "false",
        minor=interpreter.minor,
        path=interpreter.path,
    )
    return [
        text_file(f"{home}/pyvenv.cfg", settings.encode()),
        link(f"{home}/bin/python3", interpreter.path),
        link(f"{home}/bin/python", "python3"),
        text_file(f"{home}/bin/edge-agent", _PROGRAM.format(home=HOME).encode(), RUNNABLE),
    ]
