"""The process that holds the key: started when needed, gone when idle, replaced when it died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent.identity import KeyPlace
from edge_agent.keyholder import KeyHolder
from edge_agent.keys import DeviceKey, provide_key
from edge_contract.errors import EdgeError
from edge_contract.limits import REPORT_BYTES_MAX
from tests.support.devicetoken import make_token, run_python

URI = "file:device.key"


def place_of(key: DeviceKey, folder: Path) -> KeyPlace:
    return KeyPlace(key.uri, key.algorithm, key.keyid, folder)


def verify(key: DeviceKey, signature: bytes, content: bytes) -> None:
    assert isinstance(key.public, ec.EllipticCurvePublicKey)
    key.public.verify(signature, content, ec.ECDSA(hashes.SHA256()))


class Bench:
    """A key in a file and the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = provide_key(URI, folder)
        self.place = place_of(self.key, folder)
        self.holders: list[KeyHolder] = []

    def holder(self, command: str | None = None, idle_ms: int = 60_000, timeout_ms: int = 30_000) -> KeyHolder:
        """A holder; with a piece of Python instead of the real process."""
        if command is None:
            made = KeyHolder(lambda: self.place, idle_ms=idle_ms, timeout_ms=timeout_ms)
        else:
            program = (sys.executable, "-c", command)
            made = KeyHolder(lambda: self.place, command=program, idle_ms=idle_ms, timeout_ms=timeout_ms)
        self.holders.append(made)
        return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for holder in made.holders:
        holder.close()


def children() -> set[int]:
    """Processes that this one started and that have not ended, by what the system knows."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            words = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that ended meanwhile, one of another test perhaps
        for word in words:
            try:
                if Path(f"/proc/{word}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.add(int(word))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)  # polls a condition


def test_what_it_signs_holds_also_when_it_is_longer_than_a_pipe(bench: Bench) -> None:
    holder = bench.holder()
    for content in (b"short", b"x" * REPORT_BYTES_MAX):
        verify(bench.key, holder.sign(content), content)
    assert (holder.keyid, holder.algorithm) == (bench.key.keyid, "ES256")


def test_one_process_signs_for_many_threads(bench: Bench) -> None:
    before = children()
    holder = bench.holder()
    signed: list[tuple[bytes, bytes]] = []

    def sign(number: int) -> None:
        content = str(number).encode()
        signed.append((content, holder.sign(content)))

    threads = [threading.Thread(target=sign, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(signed) == 8
    for content, signature in signed:
        verify(bench.key, signature, content)
    assert len(children() - before) == 1


def test_it_ends_when_it_has_nothing_to_do_and_another_takes_its_place(bench: Bench) -> None:
    before = children()
    holder = bench.holder(idle_ms=50)
    verify(bench.key, holder.sign(b"one"), b"one")
    wait_until(lambda: children() <= before)
    verify(bench.key, holder.sign(b"two"), b"two")


def test_it_is_replaced_when_it_was_killed(bench: Bench) -> None:
    before = children()
    holder = bench.holder()
    holder.sign(b"one")
    (pid,) = children() - before
    os.kill(pid, signal.SIGKILL)
    verify(bench.key, holder.sign(b"two"), b"two")


def test_it_ends_with_the_agent_however_that_ends(bench: Bench, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from edge_agent.identity import KeyPlace
from edge_agent.keyholder import KeyHolder
holder = KeyHolder(lambda: KeyPlace({URI!r}, "ES256", {bench.key.keyid!r}, Path({str(bench.folder)!r})))
holder.sign(b"one")
Path({str(tmp_path / "pid")!r}).write_text(Path("/proc/self/task/%d/children" % os.getpid()).read_text())
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    pid = (tmp_path / "pid").read_text().strip()
    assert pid
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or b"keyholder" not in _command_of(pid))


def _command_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def test_closing_ends_it(bench: Bench) -> None:
    before = children()
    holder = bench.holder()
    holder.sign(b"one")
    holder.close()
    wait_until(lambda: children() <= before)


def test_a_key_that_was_renewed_is_the_one_that_signs_next(bench: Bench, tmp_path: Path) -> None:
    holder = bench.holder()
    holder.sign(b"one")
    (tmp_path / "next").mkdir()
    renewed = provide_key(URI, tmp_path / "next")
    bench.place = place_of(renewed, tmp_path / "next")
    verify(renewed, holder.sign(b"two"), b"two")


def test_another_key_than_the_enrolled_one_signs_nothing(bench: Bench) -> None:
    (bench.folder / "device.key").unlink()
    provide_key(URI, bench.folder)
    with pytest.raises(EdgeError, match="another one") as caught:
        bench.holder().sign(b"one")
    assert caught.value.code == "device.key-unusable"


def test_a_key_that_others_may_read_is_refused_until_it_is_put_right(bench: Bench) -> None:
    holder = bench.holder()
    (bench.folder / "device.key").chmod(0o644)
    with pytest.raises(EdgeError, match="chmod 600") as caught:
        holder.sign(b"one")
    assert caught.value.code == "device.key-unusable"
    (bench.folder / "device.key").chmod(0o600)
    verify(bench.key, holder.sign(b"two"), b"two")


def test_a_process_that_never_answers_is_given_up(bench: Bench) -> None:
    before = children()
    holder = bench.holder("import time; time.sleep(100)", timeout_ms=300)
    for content in (b"short", b"x" * REPORT_BYTES_MAX):  # one that it does not even read to its end
        with pytest.raises(EdgeError, match="within 300 ms") as caught:
            holder.sign(content)
        assert caught.value.code == "device.key-unusable"
    wait_until(lambda: children() <= before)


def test_a_process_that_ends_at_once_is_tried_twice(bench: Bench, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    holder = bench.holder(f"open({str(marks)!r}, 'a').write('x')")
    with pytest.raises(EdgeError, match="ends before it answers"):
        holder.sign(b"one")
    assert marks.read_text() == "xx"


def test_a_process_that_talks_nonsense_is_a_bug(bench: Bench) -> None:
    with pytest.raises(EdgeError) as caught:
        bench.holder("import sys; sys.stdin.readline(); print('hello', flush=True)").sign(b"one")
    assert caught.value.code == "internal.bug"


def test_a_program_that_cannot_be_started_is_an_error(bench: Bench, tmp_path: Path) -> None:
    holder = KeyHolder(lambda: bench.place, command=(str(tmp_path / "absent"),))
    with pytest.raises(EdgeError) as caught:
        holder.sign(b"one")
    assert caught.value.code == "device.memory-short"


def test_the_control_process_loads_neither_cryptography_nor_a_token_library(bench: Bench) -> None:
    program = f"""
import sys
from pathlib import Path
import edge_agent.shell.main, edge_agent.cli, edge_agent.keyholder
from edge_agent.identity import KeyPlace
from edge_agent.keyholder import KeyHolder
from edge_agent.reporting import envelope_for
from edge_agent.tokens import token_for
holder = KeyHolder(lambda: KeyPlace({URI!r}, "ES256", {bench.key.keyid!r}, Path({str(bench.folder)!r})))
token_for("cam-1", holder, 1), envelope_for(b"report", holder)
holder.close()
print([name for name in ("cryptography", "pkcs11", "tuf", "edge_agent.keys") if name in sys.modules])
"""
    assert run_python(program, [], os.environ).strip() == "[]"


@pytest.mark.system
def test_a_wrong_pin_is_tried_once_so_that_the_token_does_not_lock_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token(tmp_path / "hsm")
    token.use(monkeypatch)
    token.pin_file.write_text("0000")
    tries = tmp_path / "tries"
    program = (
        f"open({str(tries)!r}, 'a').write('x')\nimport sys\nfrom edge_agent.keyholder import serve\n"
        "serve(sys.stdin.buffer, sys.stdout.buffer)"
    )
    place = KeyPlace(token.uri(), "ES256", "00", tmp_path)
    holder = KeyHolder(lambda: place, command=(sys.executable, "-c", program))
    for _ in range(4):
        with pytest.raises(EdgeError, match="PIN") as caught:
            holder.sign(b"one")
        assert caught.value.code == "device.key-unusable"
    holder.close()
    assert tries.read_text() == "x"


@pytest.mark.system
def test_a_key_on_a_token_signs_through_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = make_token(tmp_path / "hsm")
    token.use(monkeypatch)
    made = run_python(
        "import sys; from pathlib import Path; from edge_agent.keys import provide_key\n"
        "key = provide_key(sys.argv[1], Path('/')); print(key.uri, key.keyid, key.public.public_numbers().x)",
        [token.uri()],
        token.environment,
    ).split()
    place = KeyPlace(made[0], "ES256", made[1], tmp_path)
    holder = KeyHolder(lambda: place)
    signature = holder.sign(b"content")
    holder.close()
    program = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from edge_agent.keys import open_key

open_key(sys.argv[1], Path("/")).public.verify(bytes.fromhex(sys.argv[2]), b"content", ec.ECDSA(hashes.SHA256()))
print("holds")
"""
    assert run_python(program, [made[0], signature.hex()], token.environment).strip() == "holds"
