"""A small client for the inference endpoint of a module, on its unix socket or its TCP port. Standard library only;
numpy where arrays are asked for.

On the unix socket tensors travel as frames (docs/frames.md), anywhere else, and where frames are not spoken, by the
Open Inference Protocol v2 over HTTP; connections are kept alive. Inference is pure, so a request whose connection was
reset is repeated once: the agent keeps the listening sockets, and a worker that crashed is replaced.
"""

import http.client
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

from edge_agent.frame_client import Answer, CutError, Encoded, FrameClient, NoFramesError, Signature
from edge_agent.frames import DEADLINE_MS_MAX
from edge_agent.plain_tensors import pack_elements, unpack_elements
from edge_contract.codes import CODES
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

if TYPE_CHECKING:
    from edge_agent.inference_arrays import Outputs

_arrays: ModuleType | None = None
TIMEOUT_S_DEFAULT: Final = 60.0
_ATTEMPTS: Final = 2
_INFERENCE_LENGTH: Final = "Inference-Header-Content-Length"
_CUT: Final = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.BadStatusLine)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor.

    Attributes:
        name: As the model names it.
        datatype: Open Inference Protocol datatype, for example `FP32`.
        shape: Row-major dimensions.
        data: The elements, flat or nested; or their little-endian bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer, and who computed it.

    Attributes:
        manifest: Digest of the bundle that computed it.
        model: Name of the model.
        version: Its version.
        id: Of the request, empty when it had none.
        outputs: Output tensors by name.
        result: What a script without tensor signature returned.
    """

    manifest: Digest
    model: str
    version: int
    id: str = ""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    result: Any = None


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(os.fspath(self._path))
        except OSError:
            self.sock.close()
            raise


class InferenceClient:
    """Asks the models of one module. Used by one thread at a time; for several there is
    `edge_agent.inference_pool.InferencePool`."""

    def __init__(
        self,
        address: Path | tuple[str, int],
        timeout_s: float = TIMEOUT_S_DEFAULT,
        uses_frames: bool = True,
        token: str = "",
    ) -> None:
        """Make a client; it connects with the first request.

        Args:
            address: Path of the unix socket, or (host, port).
            timeout_s: Longest silence of the other side, seconds.
            uses_frames: Whether to speak frames on a unix socket.
            token: What the agent's `[serve] token_file` holds, where it asks for one over TCP.
        """
        self._address = address
        self._access = {"Authorization": f"Bearer {token}"} if token else {}
        self._connection: http.client.HTTPConnection
        self._frames: FrameClient | None = None
        self._inputs: dict[str, list[Any]] = {}  # by model, where HTTP is spoken
        if isinstance(address, Path):
            self._connection = _UnixConnection(address, timeout_s)
            if uses_frames:
                self._frames = FrameClient(address, timeout_s)
        else:
            self._connection = http.client.HTTPConnection(address[0], address[1], timeout=timeout_s)

    def __enter__(self) -> "InferenceClient":
        """Use it in a block that closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        if self._frames is not None:
            self._frames.close()

    def infer_arrays(
        self,
        inputs: Mapping[str, Any],
        model: str,
        outputs: Sequence[str] = (),
        request_id: str = "",
        deadline_ms: int = 0,
    ) -> "Outputs":
        """Have a model compute on numpy arrays.

        Args:
            inputs: An array for each input of the model, of its type and a shape that fits; what is no array is made
                one. Elements of BYTES are bytes or text, in an array of objects.
            model: Name of the model; the module's name will do when it has one model only.
            outputs: Names of the outputs that are wanted; all when empty.
            request_id: For the records of telemetry.
            deadline_ms: After which the answer is of no use; the worker does not begin it then. 0 for none. HTTP does
                not know it.

        Returns:
            Arrays by output name; `manifest` and `version` say which bundle computed them.

        Raises:
            EdgeError: `model.*` as the worker answers, `network.*`.
        """
        arrays = _arrays or _import_arrays()
        attempt = 1
        if self._frames is not None and not (outputs or request_id or deadline_ms):
            try:
                before = arrays.ask_as_before(self._frames, model, inputs)
                if before is not None:
                    return cast("Outputs", before)
            except NoFramesError:
                self._frames = None
            except CutError:
                attempt = 2
            except OSError as error:
                raise self._unanswered(error) from error
        encode = partial(arrays.encode_arrays, inputs)
        answer = self._ask_frames(model, encode, outputs, request_id, deadline_ms, attempt)
        if answer is not None:
            return cast("Outputs", arrays.decode_arrays(answer))
        for _ in range(_ATTEMPTS):
            known = self._inputs.get(model)
            signature = known or self.metadata(model).get("inputs") or []
            self._inputs[model] = signature
            try:
                tensors = arrays.as_tensors(inputs, signature)
                prediction = self._infer_http(model, tensors, outputs, True, request_id)
                return cast("Outputs", arrays.from_prediction(prediction))
            except EdgeError as error:
                del self._inputs[model]  # the model may be another one by now
                if known is None or error.code != "model.input-invalid":
                    raise
        raise EdgeError("internal.bug", "a request was neither answered nor refused")

    def _ask_frames(
        self,
        model: str,
        encode: Callable[[Signature], Encoded],
        outputs: Sequence[str],
        request_id: str,
        deadline_ms: int,
        attempt: int = 1,
    ) -> Answer | None:
        """Ask by frames; none when that cannot be and HTTP has to do."""
        frames = self._frames
        if frames is None:
            return None
        if not 0 <= deadline_ms <= DEADLINE_MS_MAX:
            raise EdgeError("model.input-invalid", f"a deadline is 0 to {DEADLINE_MS_MAX} ms away")
        for number in range(attempt, _ATTEMPTS + 1):
            try:
                return frames.infer(model, encode, tuple(outputs), request_id, deadline_ms)
            except NoFramesError:
                self._frames = None
                return None
            except CutError as error:
                if number == _ATTEMPTS:
                    raise EdgeError("network.cut", f"the connection to {self._place} was cut") from error
            except OSError as error:
                raise self._unanswered(error) from error
        return None

    def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        is_binary: bool = False,
        request_id: str = "",
    ) -> Prediction:
        """Have a model compute.

        Args:
            model: Name of the model; the module's name will do when it has one model only.
            inputs: All inputs of the model.
            outputs: Names of the outputs that are wanted; all when empty.
            is_binary: Whether outputs come back as bytes; else as flat lists.
            request_id: Comes back in the answer.

        Raises:
            EdgeError: `model.*` as the worker answers, `network.*`.
        """
        answer = self._ask_frames(model, partial(_encode_tensors, inputs), outputs, request_id, 0)
        if answer is None:
            return self._infer_http(model, inputs, outputs, is_binary, request_id)
        return _from_frames(answer, is_binary, request_id)

    def _infer_http(
        self, model: str, inputs: Sequence[Tensor], outputs: Sequence[str], is_binary: bool, request_id: str
    ) -> Prediction:
        document: JsonObject = {"inputs": []}
        binary: list[bytes] = []
        for tensor in inputs:
            item: JsonObject = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            if isinstance(tensor.data, bytes):
                item["parameters"] = {"binary_data_size": len(tensor.data)}
                binary.append(tensor.data)
            else:
                item["data"] = tensor.data
            document["inputs"].append(item)
        if outputs:
            document["outputs"] = [{"name": name} for name in outputs]
        if is_binary:
            document["parameters"] = {"binary_data_output": True}
        if request_id:
            document["id"] = request_id
        head = _encode(document)
        headers = {"Content-Type": "application/json"}
        if binary:
            headers = {"Content-Type": "application/octet-stream", _INFERENCE_LENGTH: str(len(head))}
        reply, body = self._exchange("POST", f"/v2/models/{model}/infer", b"".join((head, *binary)), headers)
        return _prediction(reply, body)

    def infer_json(self, model: str, document: Any) -> Prediction:
        """Send any JSON: a whole request of the protocol, or the data of a script without tensor signature.

        Raises:
            EdgeError: `model.*` as the worker answers, `network.*`.
        """
        headers = {"Content-Type": "application/json"}
        answer, body = self._exchange("POST", f"/v2/models/{model}/infer", _encode(document), headers)
        return _prediction(answer, body)

    def metadata(self, model: str) -> JsonObject:
        """The model's metadata: versions, platform, tensor signature.

        Raises:
            EdgeError: `model.not-serving`, `network.*`.
        """
        return _json(self._exchange("GET", f"/v2/models/{model}", None, {})[1])

    def is_ready(self) -> bool:
        """Whether something answers and is ready."""
        try:
            return bool(_json(self._exchange("GET", "/v2/health/ready", None, {})[1]).get("ready"))
        except EdgeError:
            return False

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._connection.request(method, path, body, headers | self._access)
                answer = self._connection.getresponse()
                content = answer.read()
                break
            except _CUT as error:
                self._connection.close()
                if attempt == _ATTEMPTS:
                    raise EdgeError("network.cut", f"the connection to {self._place} was cut: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                raise self._unanswered(error) from error
        else:
            raise EdgeError("internal.bug", "a request was neither answered nor refused")
        if answer.status >= http.client.BAD_REQUEST:
            raise _error(answer.status, content)
        return answer, content

    def _unanswered(self, error: Exception) -> EdgeError:
        if isinstance(error, TimeoutError):
            return EdgeError("network.timeout", f"no answer from {self._place} in time")
        return EdgeError(
            "network.unreachable",
            f"nothing answers at {self._place}: {error}",
            "Is the agent running, and does the module serve a model? `edge-agent status` says so.",
        )

    @property
    def _place(self) -> str:
        return str(self._address) if isinstance(self._address, Path) else f"{self._address[0]}:{self._address[1]}"


def _import_arrays() -> ModuleType:
    """Load what needs numpy, when it is needed for the first time."""
    global _arrays
    from edge_agent import inference_arrays

    _arrays = inference_arrays
    return inference_arrays


def _encode_tensors(tensors: Sequence[Tensor], signature: Signature) -> Encoded:
    by_name = {tensor.name: tensor for tensor in tensors}
    names = signature.inputs.names
    if len(by_name) != len(tensors) or set(by_name) != set(names):
        raise EdgeError(
            "model.input-invalid",
            f"the inputs given are {[tensor.name for tensor in tensors]}",
            f"The model's inputs are: {', '.join(names)}.",
        )
    parts: list[bytes | memoryview] = []
    lengths: list[int] = []
    for spec in signature.inputs.specs:
        tensor = by_name[spec.name]
        if not spec.fits(tensor.datatype, tensor.shape):
            raise EdgeError(
                "model.input-invalid",
                f"the input {spec.name!r} came as {tensor.datatype} {list(tensor.shape)}",
                f"Wanted: {spec.datatype} {list(spec.shape)}.",
            )
        data = tensor.data
        raw = data if isinstance(data, bytes) else pack_elements(spec.name, spec.datatype, tensor.shape, data)
        parts.append(raw)
        if spec.datatype == "BYTES":
            lengths.append(len(raw))
    plan = signature.inputs.make(tuple(by_name[name].shape for name in names), lengths)
    for place, part in zip(plan.places, parts, strict=True):
        if len(part) != place.end - place.start:
            raise EdgeError(
                "model.input-invalid", f"{place.name!r} wants {place.end - place.start} bytes, {len(part)} came"
            )
    return plan.join(parts), plan.size


def _from_frames(answer: Answer, is_binary: bool, request_id: str) -> Prediction:
    outputs: dict[str, Tensor] = {}
    for place in answer.places:
        raw = bytes(answer.payload[place.start : place.end])
        try:
            data = raw if is_binary else unpack_elements(place.datatype, place.count, raw)
        except ValueError as error:
            raise EdgeError("network.cut", f"the output {place.name!r} is {error}") from None
        outputs[place.name] = Tensor(place.name, place.datatype, place.shape, data)
    manifest = Digest.from_hex(answer.manifest.hex())
    return Prediction(manifest, answer.model, answer.version, request_id, outputs)


def _encode(document: Any) -> bytes:
    try:
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise EdgeError("model.input-invalid", f"the input cannot be written as JSON: {error}") from error


def _json(content: bytes) -> JsonObject:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EdgeError("network.cut", "the answer is not a JSON object")
    return value


def _error(status: int, content: bytes) -> EdgeError:
    try:
        document = _json(content)
    except EdgeError:
        document = {}
    code = str(document.get("code"))
    text = str(document.get("error") or f"the worker answered with HTTP status {status}")
    return EdgeError(code if code in CODES else "model.inference-failed", text)


def _prediction(answer: http.client.HTTPResponse, content: bytes) -> Prediction:
    try:
        length = int(answer.headers.get(_INFERENCE_LENGTH, len(content)))
        document, place = _json(content[:length]), length
        outputs: dict[str, Tensor] = {}
        for item in document["outputs"]:
            data: list[Any] | bytes
            if "data" in item:
                data = item["data"]
            else:
                size = item["parameters"]["binary_data_size"]
                data = content[place : place + size]
                place += size
            outputs[item["name"]] = Tensor(item["name"], item["datatype"], tuple(item["shape"]), data)
        return Prediction(
            Digest(answer.headers.get("Lighterman-Manifest", "")),
            document["model_name"],
            int(document["model_version"]),
            document.get("id", ""),
            outputs,
            document.get("result"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EdgeError("network.cut", f"the answer is not one of the Open Inference Protocol: {error}") from error
