"""Options that many commands share."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import click

from edge_contract.errors import EdgeError

URL_DEFAULT: Final = "http://127.0.0.1:8400"
_TOKEN_FILE_BYTES_MAX: Final = 4096


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def remote(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which registry; the command gets an open `client`, and `as_json`."""

    @json_option
    @click.option("--url", envvar="LIGHTERMAN_URL", default=URL_DEFAULT, show_default=True, help="Base URL.")
    @click.option("--token", envvar="LIGHTERMAN_TOKEN", default="", help="Operator token; better in LIGHTERMAN_TOKEN.")
    @click.option("--token-file", type=click.Path(path_type=Path), help="File that holds the token.")
    @click.option("--ca-file", type=click.Path(path_type=Path), help="CA certificate of an https registry.")
    @functools.wraps(command)
    def wrapper(
        *positional: Any, url: str, token: str, token_file: Path | None, ca_file: Path | None, **options: Any
    ) -> Any:
        from cloud_registry.client import RegistryClient

        with RegistryClient(url, read_token(token, token_file), ca_file=ca_file) as client:
            return command(*positional, client=client, **options)

    return wrapper


def read_token(token: str, token_file: Path | None) -> str:
    """The token that was given, or the one in the file.

    Raises:
        EdgeError: `config.file-missing`, or `config.invalid` when there is none.
    """
    if token_file is not None:
        try:
            with token_file.open(encoding="ascii") as file:
                token = file.read(_TOKEN_FILE_BYTES_MAX).strip()
        except (OSError, UnicodeError):
            raise EdgeError("config.file-missing", f"cannot read the token file {token_file}") from None
    if not token:
        raise EdgeError("config.invalid", "no token was given", "Set LIGHTERMAN_TOKEN, or use --token-file or --token.")
    return token


def pairs(texts: Iterable[str], what: str) -> dict[str, str]:
    """Texts `key=value` as a dictionary.

    Raises:
        EdgeError: `config.invalid`.
    """
    result: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise EdgeError("config.invalid", f"{what} {text!r} is not key=value", "For example --tag site=north.")
        result[key] = value
    return result
