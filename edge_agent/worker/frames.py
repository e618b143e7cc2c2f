"""Answers frames: what a bundle's models are, and inference on arrays that came without names. See docs/frames.md.

Format and layout are `edge_agent.frames`; connections are `edge_agent.worker.lane`.
"""

import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np

from edge_agent.frames import (
    ANSWER,
    ANSWER_BYTES_MAX,
    DEADLINE_MS_MAX,
    DESCRIPTION,
    ERROR,
    NAMED,
    PREFIX,
    STALE,
    TENSORS,
    VERSION,
    WANTED_MAX,
    Layout,
    Plan,
    invalid,
    padded,
    signature_key,
)
from edge_agent.worker.arrays import DTYPES, Array, datatype_of, from_bytes, to_bytes
from edge_agent.worker.bundle import LoadedBundle, LoadedMember
from edge_agent.worker.limits import JOIN_BYTES_MAX, REQUEST_ID_CHARS_MAX, SHARED_CORE_US_MAX, WorkerLimits
from edge_agent.worker.oip import write_json
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

Parts = list[bytes | memoryview]
"""An answer in pieces: its head first."""

_LAYOUTS_MAX: Final = 64
_IS_LITTLE: Final = sys.byteorder == "little"
_CHECKED: Final = frozenset({"BOOL", "BYTES"})
"""Datatypes whose bytes can be wrong."""


class Compute(Protocol):
    """`Service.compute`."""

    def __call__(
        self,
        name: str,
        inputs: Mapping[str, Array],
        wanted: Sequence[str],
        received_ns: int,
        request_id: str = "",
        deadline_ns: int = 0,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> dict[str, Array]:
        """Run a model for a client, in this thread."""
        ...


class _Model:
    """One model as frames see it."""

    def __init__(self, member: LoadedMember) -> None:
        engine = member.engine
        self.name = member.name
        self.platform = engine.platform
        self.key = signature_key(member.name, engine.inputs, engine.outputs)
        self.inputs = Layout(engine.inputs)
        self.outputs = Layout(engine.outputs)
        self._by_wanted: dict[int, Layout] = {0: self.outputs}

    def wanted(self, mask: int) -> Layout:
        """The outputs that a request asks for, bit by bit; 0 is all of them.

        Raises:
            EdgeError: `model.input-invalid`.
        """
        layout = self._by_wanted.get(mask)
        if layout is None:
            specs = self.outputs.specs
            if len(specs) > WANTED_MAX or mask >> len(specs):
                raise invalid(f"{self.name!r} has {len(specs)} outputs that can be asked for, the mask is {mask:#x}")
            layout = Layout([spec for place, spec in enumerate(specs) if mask >> place & 1])
            if len(self._by_wanted) >= _LAYOUTS_MAX:
                self._by_wanted = {0: self.outputs}
            self._by_wanted[mask] = layout
        return layout

    def to_json(self, aliases: Sequence[str]) -> JsonObject:
        """Its part of the description."""
        return {
            "name": self.name,
            "aliases": list(aliases),
            "key": f"{self.key:016x}",
            "platform": self.platform,
            "inputs": [spec.to_json() for spec in self.inputs.specs],
            "outputs": [spec.to_json() for spec in self.outputs.specs],
        }


class FrameModels:
    """The models of one bundle behind frames. Any thread.

    Attributes:
        is_quick: Whether threads of several connections had better share a core; see `edge_agent.worker.cores`.
    """

    def __init__(self, module: str, bundle: LoadedBundle, compute: Compute, limits: WorkerLimits) -> None:
        """Answer for a proved bundle.

        Args:
            module: Name of the module; also serves as the name of a model when there is one only.
            bundle: What to serve.
            compute: Runs a model.
            limits: Bounds.
        """
        self._compute = compute
        self._manifest = bytes.fromhex(bundle.manifest.hex)
        self._version = bundle.runtime.version
        # A script that takes any JSON has no tensors to send.
        models = [_Model(member) for member in bundle.members.values() if member.engine.inputs]
        self.is_quick = all(
            member.engine.is_quick and 0 < member.run_us <= SHARED_CORE_US_MAX for member in bundle.members.values()
        )
        self._models = {model.key: model for model in models}
        self._description = write_json(
            {
                "module": module,
                "model": bundle.runtime.model,
                "version": self._version,
                "manifest": str(bundle.manifest),
                "frames": VERSION,
                "payload_bytes_max": limits.body_bytes_max,
                "models": [model.to_json([module] if len(bundle.members) == 1 else []) for model in models],
            }
        )

    def describe(self, number: int) -> Parts:
        """The answer that says which models there are."""
        return self._answer(DESCRIPTION, 0, number, [self._description])

    def fail(self, error: EdgeError, number: int, flags: int = 0) -> Parts:
        """The answer that says what went wrong."""
        document = {"code": error.code, "detail": error.detail, "hint": error.hint}
        return self._answer(ERROR, flags, number, [write_json(document)])

    def infer(
        self,
        head: Sequence[int],
        payload: bytes | bytearray | memoryview,
        received_ns: int,
        is_gone: Callable[[], bool],
    ) -> Parts:
        """Compute.

        Args:
            head: The fields of `frames.REQUEST`, of kind `INFER`.
            payload: All of it.
            received_ns: Monotonic clock when its last byte came.
            is_gone: Whether the client is; see `Service.compute`.

        Returns:
            The answer, which may be an error.

        Raises:
            ConnectionAbortedError: The client is gone.
        """
        number = head[6]
        model = self._models.get(head[7])
        if model is None:
            return self._answer(STALE, 0, number, [self._description])
        try:
            inputs, request_id = self._read(model, head, payload)
            wanted = model.wanted(head[8])
            deadline_ns = received_ns + head[5] * 1_000_000 if head[5] else 0
            outputs = self._compute(
                model.name, inputs, wanted.names if head[8] else (), received_ns, request_id, deadline_ns, is_gone
            )
            return self._write(wanted, number, outputs)
        except EdgeError as error:
            return self.fail(error, number)

    @staticmethod
    def _read(
        model: _Model, head: Sequence[int], payload: bytes | bytearray | memoryview
    ) -> tuple[dict[str, Array], str]:
        layout = model.inputs
        plan = layout.find(payload)
        id_bytes = head[3]
        if plan.size + id_bytes != len(payload):
            raise invalid(
                f"the tensors of {model.name!r} and an id of {id_bytes} bytes need {plan.size + id_bytes} bytes, "
                f"{len(payload)} came"
            )
        if head[5] > DEADLINE_MS_MAX:
            raise invalid(f"a deadline is at most {DEADLINE_MS_MAX} ms away")
        inputs: dict[str, Array] = {}
        for place in plan.places:
            if place.datatype in _CHECKED:
                data = memoryview(payload)[place.start : place.end]
                inputs[place.name] = from_bytes(place.name, place.datatype, place.shape, data)
            else:
                numbers: Array = np.frombuffer(payload, DTYPES[place.datatype], place.count, place.start)
                inputs[place.name] = numbers.reshape(place.shape)
        return inputs, _text(payload[plan.size :]) if id_bytes else ""

    def _write(self, wanted: Layout, number: int, outputs: Mapping[str, Array]) -> Parts:
        raw = [_raw(array) for array in outputs.values()]
        plan = _plan(wanted, outputs, raw)
        if plan is None:
            return self._write_named(number, outputs, raw)
        if len(raw) == 1 and plan.size <= JOIN_BYTES_MAX:
            head = ANSWER.pack(PREFIX, TENSORS, 0, 0, plan.size, 0, number, self._version, self._manifest)
            return [b"".join((head, plan.table, raw[0]))]
        return self._answer(TENSORS, 0, number, plan.join(raw))

    def _write_named(self, number: int, outputs: Mapping[str, Array], raw: Parts) -> Parts:
        """For outputs that do not follow the signature, or have none: a list of them goes first."""
        items: list[JsonObject] = []
        pieces: Parts = []
        end = 0
        for (name, array), data in zip(outputs.items(), raw, strict=True):
            items.append({"name": name, "datatype": datatype_of(array), "shape": list(array.shape), "bytes": len(data)})
            if pieces and padded(end) > end:
                pieces.append(bytes(padded(end) - end))
            pieces.append(data)
            end = padded(end) + len(data)
        table = write_json({"outputs": items})
        listed = struct.pack("<II", len(table), 0) + table
        return self._answer(TENSORS, NAMED, number, [listed.ljust(padded(len(listed)), b"\0"), *pieces])

    def _answer(self, kind: int, flags: int, number: int, pieces: Parts) -> Parts:
        size = sum(map(len, pieces))
        if size > ANSWER_BYTES_MAX:
            raise EdgeError("model.output-invalid", f"the answer has {size} bytes, at most {ANSWER_BYTES_MAX} are sent")
        return [ANSWER.pack(PREFIX, kind, flags, 0, size, 0, number, self._version, self._manifest), *pieces]


def _plan(wanted: Layout, outputs: Mapping[str, Array], raw: Parts) -> Plan | None:
    """How outputs lie in an answer, or none when they do not follow the signature."""
    if tuple(outputs) != wanted.names:
        return None
    shapes: list[tuple[int, ...]] = []
    lengths: list[int] = []
    for spec, array, data in zip(wanted.specs, outputs.values(), raw, strict=True):
        if array.dtype != DTYPES[spec.datatype]:
            return None
        shapes.append(array.shape)
        if spec.datatype == "BYTES":
            lengths.append(len(data))
    try:
        return wanted.make(tuple(shapes), lengths)
    except EdgeError:
        return None


def _raw(array: Array) -> bytes | memoryview:
    """The bytes of a tensor."""
    if array.nbytes > JOIN_BYTES_MAX or array.dtype.kind in "OSU":
        return to_bytes(array)
    if array.dtype.isnative and _IS_LITTLE:
        return array.tobytes()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _text(data: bytes | bytearray | memoryview) -> str:
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        raise invalid("the id of a request is UTF-8") from None
    if len(text) > REQUEST_ID_CHARS_MAX:
        raise invalid(f"the id of a request has at most {REQUEST_ID_CHARS_MAX} characters")
    return text
