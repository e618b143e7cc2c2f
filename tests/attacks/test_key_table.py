"""Which stolen keys are enough for what: docs/threats.md says what trying all of them shows."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.attacks.matrix import IMAGE_KEYS, NONE, Install, World, smallest, table
from tests.support.require import REPOSITORY_ROOT
from tests.support.tufrepo import BINS

BEGIN, END = "<!-- keys: written by tests/attacks/matrix.py -->\n", "\n<!-- /keys -->"
ONLINE = frozenset({"snapshot", "timestamp"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose device does not wait for the disk: nothing here is about power cuts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield World(tmp_path_factory.mktemp("keys"))


@pytest.mark.slow
def test_the_page_of_threats_shows_the_table_that_trying_every_set_of_keys_gives(world: World) -> None:
    page = (REPOSITORY_ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    written = page.partition(BEGIN)[2].partition(END)[0]
    assert written == table(world), f"the table is out of date; it has to be:\n{table(world)}"


def test_what_is_enough_in_each_repository_is_enough_together(world: World) -> None:
    install = Install(world)
    for director in ({"root"}, {"targets", *ONLINE}):
        for image in ({"root"}, {"targets", *ONLINE}, {BINS, *ONLINE}):
            assert install.both(frozenset(director), frozenset(image)), (director, image)


def test_all_keys_of_one_repository_and_all_keys_of_the_server_install_nothing_of_their_own(world: World) -> None:
    install = Install(world)
    everything = frozenset({"root", "targets", BINS}) | ONLINE
    assert not install.both(everything - {BINS}, ONLINE)
    assert not install.both(ONLINE, everything)
    assert not install.both(NONE, everything)
    assert not install.both(ONLINE | {"targets"}, ONLINE), "the server"
    assert not install.both(NONE, frozenset({"root", "targets", BINS})), "the author"
    assert not install.both(frozenset({"targets"}), frozenset({"targets", BINS})), (
        "what says what, without what says when"
    )


def test_more_keys_are_never_less(world: World) -> None:
    """What `smallest` counts on when it leaves out sets that hold a smaller one."""
    install = Install(world)
    for least in smallest(IMAGE_KEYS, install.image):
        for more in IMAGE_KEYS:
            assert install.image(least | {more}), (least, more)
