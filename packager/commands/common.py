"""Options, output and secrets that several commands share. Nothing heavy is imported before a command runs."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.limits import EXPIRES_DAYS_DEFAULT, HTTP_TIMEOUT_S, KEY_FILE_BYTES_MAX, PASSPHRASE_CHARS_MIN

if TYPE_CHECKING:
    from cloud_registry.client import RegistryClient
    from packager.keys import RingMaker
    from packager.progress import Reporter

_Function = TypeVar("_Function", bound=Callable[..., Any])
PASSPHRASE_VARIABLE: Final = "LIGHTERMAN_KEY_PASSPHRASE"
PASSPHRASE_FILE_VARIABLE: Final = "LIGHTERMAN_KEY_PASSPHRASE_FILE"
PIN_VARIABLE: Final = "LIGHTERMAN_KEY_PIN"
PIN_FILE_VARIABLE: Final = "LIGHTERMAN_KEY_PIN_FILE"
FOLDER: Final = click.Path(path_type=Path, file_okay=False)
FILE: Final = click.Path(path_type=Path, dir_okay=False)


class FiniteRange(click.FloatRange):
    """Numbers of a range, and neither infinity nor what is no number: comparisons let that through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType.convert`."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def stacked(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Several options as one decorator, shown in this order."""

    def apply(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")

registry_options = stacked(
    click.option("--url", envvar="LIGHTERMAN_URL", help="Base URL of the registry.", metavar="URL"),
    click.option(
        "--token",
        envvar="LIGHTERMAN_TOKEN",
        help="Operator token; better in LIGHTERMAN_TOKEN or a file.",
        metavar="TOKEN",
    ),
    click.option("--token-file", type=FILE, help="File that holds the token."),
    click.option("--ca-file", type=FILE, help="CA certificate of a registry with a private authority."),
)

key_options = stacked(
    click.option(
        "--keys",
        "key_folders",
        type=FOLDER,
        multiple=True,
        envvar="LIGHTERMAN_KEYS",
        help="Folder of keys; several where a threshold needs keys of several people.",
    ),
    click.option(
        "--passphrase-file",
        type=FILE,
        envvar=PASSPHRASE_FILE_VARIABLE,
        help=f"File with the keys' pass phrase; {PASSPHRASE_VARIABLE} and a prompt do too.",
    ),
)

expires_option = click.option(
    "--expires-days", type=int, default=EXPIRES_DAYS_DEFAULT, show_default=True, help="Life of what gets signed."
)


@contextmanager
def registry(
    url: str | None, token: str | None, token_file: Path | None, ca_file: Path | None
) -> "Iterator[RegistryClient]":
    """The client that the registry options describe.

    Raises:
        EdgeError: `config.invalid` without a URL, `config.file-missing`.
    """
    from cloud_registry.client import RegistryClient

    if not url:
        raise EdgeError("config.invalid", "no registry was named", "Give --url URL, or set LIGHTERMAN_URL.")
    if token_file is not None:
        token = read_secret(token_file)
    with RegistryClient(url, token or "", HTTP_TIMEOUT_S, ca_file) as client:
        yield client


def read_secret(path: Path) -> str:
    """The first line of a file.

    Raises:
        EdgeError: `config.file-missing`.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(KEY_FILE_BYTES_MAX).strip()
    except (OSError, UnicodeError) as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error}") from None


def ring_maker(passphrase_file: Path | None, is_insecure: bool = False) -> "RingMaker":
    """The way to open keys: by environment, file, or a prompt on a terminal."""
    from packager.keys import RingMaker

    def ask(is_new: bool) -> str:
        if is_new and is_insecure:
            return ""
        given = os.environ.get(PASSPHRASE_VARIABLE) or (read_secret(passphrase_file) if passphrase_file else "")
        if not given and sys.stdin.isatty():
            text = "New pass phrase for the keys" if is_new else "Pass phrase of the keys"
            given = click.prompt(text, hide_input=True, confirmation_prompt=is_new, err=True)
        if not given:
            hint = f"Set {PASSPHRASE_VARIABLE}, or give --passphrase-file FILE"
            hint += ", or --insecure-no-passphrase for keys that protect nothing." if is_new else "."
            raise EdgeError("config.key-invalid", "the keys need a pass phrase and none was given", hint)
        if is_new and len(given) < PASSPHRASE_CHARS_MIN:
            why = f"a new pass phrase needs at least {PASSPHRASE_CHARS_MIN} characters"
            raise EdgeError("config.key-invalid", why)
        return str(given)

    return RingMaker(ask, ask_pin)


def ask_pin(label: str) -> str:
    """The PIN of a token: by environment, file, or a prompt on a terminal; never on a command line.

    Raises:
        EdgeError: `config.file-missing`; `config.key-invalid` when there is nobody to ask.
    """
    from packager.keyuri import no_pin

    path = os.environ.get(PIN_FILE_VARIABLE)
    given = os.environ.get(PIN_VARIABLE) or (read_secret(Path(path)) if path else "")
    if not given and sys.stdin.isatty():
        given = str(click.prompt(f"PIN of the token {label}".rstrip(), hide_input=True, err=True))
    return given or no_pin(label)


def require_folders(folders: Sequence[Path]) -> Sequence[Path]:
    """The folders of keys that were named.

    Raises:
        EdgeError: `config.invalid` for none.
    """
    if not folders:
        raise EdgeError("config.invalid", "no folder of keys was named", "Give --keys DIR, or set LIGHTERMAN_KEYS.")
    return folders


def make_reporter(as_json: bool) -> "Reporter":
    """Bars and lines where a person watches standard error; silence elsewhere and with `--json`."""
    from packager.progress import QuietReporter, TerminalReporter

    if as_json or not sys.stderr.isatty():
        return QuietReporter()
    return TerminalReporter()


def emit(as_json: bool, document: JsonObject, lines: Iterable[str]) -> None:
    """Print the outcome of a command."""
    if as_json:
        click.echo(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        for line in lines:
            click.echo(line)


def pairs(values: Iterable[str], flag: str) -> dict[str, str]:
    """Options of the form `key=value`.

    Raises:
        EdgeError: `config.invalid`.
    """
    result: dict[str, str] = {}
    for value in values:
        key, mark, text = value.partition("=")
        if not mark or not key:
            raise EdgeError("config.invalid", f"{flag} {value!r} is not of the form key=value")
        if key in result:
            raise EdgeError("config.invalid", f"{flag} names {key!r} twice")
        result[key] = text
    return result


def source_date_epoch() -> int | None:
    """The time of creation that the environment gives, seconds since 1970.

    Raises:
        EdgeError: `config.invalid`.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 2**33:
        raise EdgeError("config.invalid", f"SOURCE_DATE_EPOCH is {text!r}, not seconds since 1970")
    return int(text)
