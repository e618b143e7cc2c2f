"""Serves the repositories of `tufrepo` over HTTP, where a registry serves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.rawhttp import Asked, RawServer, answer, raw_server
from tests.support.tufrepo import TwoRepositories


@contextmanager
def tuf_server(repositories: TwoRepositories) -> Iterator[RawServer]:
    """A server for the length of a `with` block."""
    folders = {"/tuf/image": repositories.image, f"/tuf/director/{repositories.device}": repositories.director}

    def registry(asked: Asked) -> list[bytes]:
        folder, _, name = asked.path.rpartition("/")
        repository = folders.get(folder)
        data = None if repository is None else repository.files.get(name)
        return [answer(404) if data is None else answer(200, data)]

    with raw_server(registry, keep_alive=True) as server:
        yield server
