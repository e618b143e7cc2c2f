"""Makes deltas between registered versions, publishes them, and tells the registry; within a budget."""

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from cloud_registry.client import RegistryClient
from edge_contract.delta import EMPTY, Delta, delta_manifest
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import DELTAS_MAX
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from packager.delta.formats import read_external
from packager.delta.process import EncodedFile, EncodeRequest, Encoding
from packager.files import digest_of
from packager.limits import DELTA_JOBS_MAX
from packager.progress import Reporter, upload_progress

THERE: Final = "there is one already"
SPENT: Final = "the budget is spent"
_OUT: Final = "delta"
_FILE_BYTES_MIN: Final = 4_096
"""Smaller files are fetched whole."""
_SAVING_MIN: Final = 0.05
"""Share of a file that a delta has to save to be published."""
_EXTERNAL_BYTES_MIN: Final = 65_536
"""Shorter files are not looked for in the ONNX files beside them: those may have to be downloaded for it."""
_OF_ONE_PAIR: Final = ("artifact.", "config.", "internal.")
"""Errors with these codes say nothing about other pairs."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What making deltas may take.

    Attributes:
        seconds: Time in all; an encoding or a download under way is ended when it is up.
        bytes: Length of all deltas together.
        jobs: How many files are encoded at once, each by a process of its own.
    """

    seconds: float
    bytes: int
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class FilePair:
    """A file of the new version, and the one of a base version that it is likely made from."""

    path: str
    base_path: str
    base: Digest
    base_bytes: int
    new: Digest
    new_bytes: int


@dataclass(slots=True)
class Built:
    """What was done.

    Attributes:
        deltas: Published ones: base version, path, lengths, seconds.
        skipped: Pairs without a delta, each with the reason.
        bytes: Length of all deltas that were made.
    """

    deltas: list[JsonObject] = field(default_factory=list)
    skipped: list[JsonObject] = field(default_factory=list)
    bytes: int = 0

    def to_json(self) -> JsonObject:
        """What `--json` prints."""
        return {"deltas": self.deltas, "skipped": self.skipped, "bytes": self.bytes}


def file_pairs(base: JsonObject, new: JsonObject) -> Iterator[FilePair]:
    """Files of two versions that go together: by path, else the only one left of a kind.

    Args:
        base: A version as the registry describes it.
        new: Likewise.
    """
    known = {str(file["path"]): file for file in base["files"]}
    wanted = {str(file["path"]): file for file in new["files"]}
    left = {path: file for path, file in known.items() if path not in wanted}
    for path, file in wanted.items():
        found = known.get(path)
        if found is None:
            suffix = PurePosixPath(path).suffix
            alike = [other for other in left if PurePosixPath(other).suffix == suffix]
            rivals = [other for other in wanted if other not in known and PurePosixPath(other).suffix == suffix]
            if len(alike) != 1 or len(rivals) != 1:
                continue
            found = left[alike[0]]
        if found["digest"] != file["digest"] and min(found["size"], file["size"]) >= _FILE_BYTES_MIN:
            yield FilePair(
                path,
                str(found["path"]),
                Digest(found["digest"]),
                int(found["size"]),
                Digest(file["digest"]),
                int(file["size"]),
            )


def build_deltas(
    client: RegistryClient,
    model: str,
    version: int,
    bases: Sequence[int],
    budget: Budget,
    folder: Path,
    reporter: Reporter,
    result: Built | None = None,
) -> Built:
    """Make and publish what is missing of the deltas from some versions, in their order, until the budget is spent.

    What goes wrong with one pair of files alone is a reason to skip that pair.

    Args:
        client: With a publisher's token.
        model: Name of the model.
        version: The version to make.
        bases: Versions to start from, the most common first.
        budget: What it may take.
        folder: Where files are downloaded to and deltas are made; what is there already is used.
        reporter: Shows progress.
        result: Filled as it goes, for who wants to know what was done before an error; none makes one.

    Raises:
        EdgeError: `cloud.*`, `network.*`, `device.disk-*`; `artifact.not-found` where the version has no bundle.
    """
    result = Built() if result is None else result
    if not bases:
        return result
    new = client.get_version(model, version)
    index = _index_of(client, model, version)
    build = _Build(client, model, new, index, budget, time.monotonic(), folder, reporter, result)
    build.ended = {(item["base"], item["new"]): THERE for item in client.deltas(model, version)}
    build.count = len(build.ended)
    try:
        for number in bases:
            base = client.get_version(model, number)
            for pair in file_pairs(base, new):
                build.take(base, pair)
        build.finish()
    finally:
        build.abandon()
    return result


def _index_of(client: RegistryClient, model: str, version: int) -> bytes:
    try:
        return client.get_manifest(bundle_repository(model), str(version))
    except EdgeError as error:
        if error.code != "artifact.not-found":
            raise
        raise EdgeError(
            error.code,
            f"{model} version {version} has no bundle yet, which its deltas could refer to",
            "Build and publish it first (`packager build`, `packager push`).",
        ) from None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A pair that is being encoded, in a folder of its own: an encoder that is ended may leave files there."""

    base_version: int
    pair: FilePair
    folder: Path
    encoding: Encoding

    @property
    def out(self) -> Path:
        """The delta."""
        return self.folder / _OUT

    def forget(self) -> None:
        """Remove what was made."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(slots=True)
class _Build:
    """Makes the deltas of a version: encodes some at once, and publishes them in the order in which they were taken.

    Attributes:
        ended: What became of pairs of digests.
        count: Deltas that the version has.
        open: Pairs under way, at most `budget.jobs`.
    """

    client: RegistryClient
    model: str
    new: JsonObject
    index: bytes
    budget: Budget
    began: float
    folder: Path
    reporter: Reporter
    result: Built
    ended: dict[tuple[str, str], str] = field(default_factory=dict)
    count: int = 0
    open: deque[_UnderWay] = field(default_factory=deque)

    def take(self, base: JsonObject, pair: FilePair) -> None:
        """Begin with a pair once there is a place for it, or say why not.

        Raises:
            EdgeError: What concerns other pairs too.
        """
        while len(self.open) >= self.budget.jobs:
            self._settle()
        is_same = any(_key(item.pair) == _key(pair) for item in self.open)
        if is_same or self.count + len(self.open) >= DELTAS_MAX:
            self.finish()  # what comes of those decides about this one
        number, reason = int(base["version"]), self._reason_against(pair)
        if reason is None:
            reason = self._begin(base, pair)
        if reason is not None:
            self._skip(number, pair, reason)

    def finish(self) -> None:
        """Wait for every pair under way.

        Raises:
            EdgeError: What concerns other pairs too.
        """
        while self.open:
            self._settle()

    def abandon(self) -> None:
        """End what is under way still."""
        for item in self.open:
            item.encoding.end()
            item.forget()
        self.open.clear()

    def _begin(self, base: JsonObject, pair: FilePair) -> str | None:
        """Get the files of a pair and encode them; the reason to skip it, or none."""
        folder = Path(tempfile.mkdtemp(suffix=".delta", dir=self.folder))
        fetching = _Fetching(self.client, self.model, base, self.new, self.folder, self.reporter, self._seconds_left)
        try:
            encoding = Encoding(fetching.request(pair, folder / _OUT))
        except (EdgeError, _SpentError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            return SPENT if isinstance(error, _SpentError) else _reason_of(error)
        self.open.append(_UnderWay(int(base["version"]), pair, folder, encoding))
        return None

    def _settle(self) -> None:
        """Wait for the pair that was taken first, and publish its delta."""
        item = self.open[0]
        try:
            with self.reporter.task(f"encoding {item.pair.path} from version {item.base_version}"):
                encoded = item.encoding.wait(max(0.0, self._seconds_left()))
            reason = self._reason_not_to_publish(item.pair, encoded)
            if encoded is not None and reason is None:
                self._publish(item, encoded)
        except EdgeError as error:
            reason = _reason_of(error)
        finally:
            self.open.popleft()
            item.forget()
        if reason is not None:
            self._skip(item.base_version, item.pair, reason)

    def _publish(self, item: _UnderWay, encoded: EncodedFile) -> None:
        version, pair = int(self.new["version"]), item.pair
        made = _published(
            self.client, self.model, version, pair, item.out, encoded.peak_bytes, self.index, self.reporter
        )
        self.ended[_key(pair)] = THERE
        self.count += 1
        self.result.bytes += made.bytes
        facts = {"base_version": item.base_version, "path": pair.path} | made.to_json()
        self.result.deltas.append(facts | {"ratio": round(made.bytes / made.new_bytes, 4)})
        self.reporter.say(f"{pair.path} from version {item.base_version}: {made.bytes} of {made.new_bytes} bytes")

    def _skip(self, base_version: int, pair: FilePair, reason: str) -> None:
        self.ended[_key(pair)] = reason
        self.result.skipped.append({"base_version": base_version, "path": pair.path, "reason": reason})

    def _reason_against(self, pair: FilePair) -> str | None:
        """Why a pair is not worth beginning with, or none."""
        if self.count >= DELTAS_MAX:
            return f"the version has {self.count} deltas, which is as many as devices are told of"
        known = self.ended.get(_key(pair))
        if known is None and (self._seconds_left() <= 0 or self.result.bytes >= self.budget.bytes):
            return SPENT
        return known

    def _reason_not_to_publish(self, pair: FilePair, encoded: EncodedFile | None) -> str | None:
        if encoded is None:
            return SPENT
        if encoded.bytes > pair.new_bytes * (1 - _SAVING_MIN):
            return f"it would save nothing: {encoded.bytes} bytes"
        if self.result.bytes + encoded.bytes > self.budget.bytes:
            return f"{encoded.bytes} bytes are more than the budget has left"
        return None

    def _seconds_left(self) -> float:
        return self.budget.seconds - (time.monotonic() - self.began)


def _key(pair: FilePair) -> tuple[str, str]:
    return str(pair.base), str(pair.new)


def _reason_of(error: EdgeError) -> str:
    """The error as a reason to skip a pair; raised again where it says something about other pairs too."""
    if not error.code.startswith(_OF_ONE_PAIR):
        raise error
    return f"{error.detail} [{error.code}]"


class _SpentError(Exception):
    """Time was up in the middle of a download."""


@dataclass(frozen=True, slots=True)
class _Fetching:
    """Gets the files of two versions into a folder, as long as there is time."""

    client: RegistryClient
    model: str
    base: JsonObject
    new: JsonObject
    folder: Path
    reporter: Reporter
    seconds_left: Callable[[], float]

    def request(self, pair: FilePair, out: Path) -> EncodeRequest:
        """What the encoder needs for a pair: both files, and the ONNX files whose external data they are, if any."""
        files = (
            self._file(self.base, pair.base_path, pair.base),
            self._file(self.new, pair.path, pair.new),
        )
        is_kept_apart = pair.new_bytes >= _EXTERNAL_BYTES_MIN and PurePosixPath(pair.path).suffix != ".onnx"
        if is_kept_apart and pair.path == pair.base_path:
            for old, new, location in self._holders(pair.path):
                onnx = self._file(self.new, str(new["path"]), Digest(new["digest"]))
                if location in read_external(onnx):
                    old_onnx = self._file(self.base, str(old["path"]), Digest(old["digest"]))
                    return EncodeRequest(*files, out, old_onnx, onnx, location)
        return EncodeRequest(*files, out)

    def _holders(self, path: str) -> Iterator[tuple[JsonObject, JsonObject, str]]:
        """ONNX files of both versions that could name a file, with the location they would name it by.

        Short ones first: a file whose weights lie elsewhere is short. A location is relative to the ONNX file's folder.
        """
        known = {str(file["path"]): file for file in self.base["files"]}
        for file in sorted(self.new["files"], key=lambda item: int(item["size"])):
            place = PurePosixPath(str(file["path"]))
            if place.suffix == ".onnx" and str(place) in known and place.parent in PurePosixPath(path).parents:
                yield known[str(place)], file, str(PurePosixPath(path).relative_to(place.parent))

    def _file(self, version: JsonObject, path: str, digest: Digest) -> Path:
        """Download a file unless the folder has it; its name there is its digest, which is checked again."""
        target = self.folder / f"{digest.hex}{PurePosixPath(path).suffix}"
        if not target.is_file() or digest_of(target)[0] != digest:
            target.unlink(missing_ok=True)
            number = int(version["version"])
            with self.reporter.task(f"downloading {path} of version {number}") as advance:
                update = upload_progress(advance)

                def watched(done: int, total: int) -> None:
                    update(done, total)
                    if self.seconds_left() <= 0:
                        raise _SpentError

                self.client.download(self.model, number, path, target, watched)
        return target


def _published(
    client: RegistryClient,
    model: str,
    version: int,
    pair: FilePair,
    file: Path,
    peak_bytes: int,
    index: bytes,
    reporter: Reporter,
) -> Delta:
    """Upload a delta, put the artifact that refers to the bundle, and tell the registry."""
    repository = bundle_repository(model)
    digest, size = digest_of(file)
    delta = Delta(pair.base, pair.base_bytes, pair.new, pair.new_bytes, digest, size, peak_bytes)
    with reporter.task(f"pushing the delta of {pair.path}", size) as advance:
        client.upload_blob(repository, file, digest, upload_progress(advance))
    client.upload_bytes(repository, EMPTY)
    data = delta_manifest(delta, Descriptor(INDEX_TYPE, Digest.of(index), len(index)))
    manifest = client.put_manifest(repository, str(Digest.of(data)), MANIFEST_TYPE, data)
    client.register_delta(model, version, manifest)
    return delta


def common_bases(client: RegistryClient, model: str, version: int, condition: str, module: str) -> list[int]:
    """Versions of the model that devices of a condition hold, the most common first.

    Raises:
        EdgeError: `cloud.*`, `network.*`.
    """
    counts: dict[int, int] = {}
    for item in client.bases(model, version, condition, module)["bases"]:
        if item["model"] == model and int(item["version"]) != version:
            counts[int(item["version"])] = counts.get(int(item["version"]), 0) + int(item["devices"])
    return sorted(counts, key=lambda number: (-counts[number], -number))


def check_budget(seconds: float, size: int, jobs: int = 1) -> Budget:
    """A budget from the command line.

    Raises:
        EdgeError: `config.invalid`.
    """
    if not (seconds >= 0 and size >= 0):  # what is no number is neither
        raise EdgeError("config.invalid", f"a budget is 0 or more, and not {seconds:g} seconds and {size} bytes")
    if not 1 <= jobs <= DELTA_JOBS_MAX:
        raise EdgeError("config.invalid", f"{jobs} encodings at once; it can be 1 to {DELTA_JOBS_MAX}")
    return Budget(seconds, size, jobs)
