"""Which bindings a bundle on this device has: its descriptor, read from its slot."""

from pathlib import Path
from typing import Final

from edge_agent.binding.carrier import INPUTS, OUTPUTS
from edge_contract.bindings import Binding, read_binding
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import RUNTIME_BYTES_MAX
from edge_contract.runtime import RUNTIME_PATH, Runtime

_DEFAULT_NAME: Final = "iot-edge"


def read_bindings(slots: Path, manifest: Digest, module: str = "", is_edge: bool = False) -> tuple[Binding, ...]:
    """The bindings of a bundle.

    Args:
        slots: Folder of the slots.
        manifest: The bundle's.
        module: Name of the module that serves it; needed inside IoT Edge.
        is_edge: Whether this device's agent is a module of Azure IoT Edge. A bundle that binds none of its inputs is
            then given a binding of its own: the input of the module's name, the output of that name.

    Raises:
        EdgeError: `device.disk-error`, `artifact.*`.
    """
    path = slots / manifest.hex / "files" / RUNTIME_PATH
    try:
        with path.open("rb") as file:
            data = file.read(RUNTIME_BYTES_MAX + 1)
    except OSError as error:
        raise EdgeError("device.disk-error", f"{path} cannot be read: {error.strerror}") from None
    runtime = Runtime.parse(data)
    if not is_edge or any(binding.input_topic.startswith(INPUTS) for binding in runtime.bindings):
        return runtime.bindings
    member = _main_member(runtime, module)
    taken = {binding.name for binding in runtime.bindings}
    name = next(name for count in range(len(taken) + 1) if (name := _DEFAULT_NAME + "-x" * count) not in taken)
    if not member:
        return runtime.bindings
    topics = {"input_topic": INPUTS + "{module}", "output_topic": OUTPUTS + "{module}"}
    return (*runtime.bindings, read_binding({"name": name, "member": member, **topics}))


def _main_member(runtime: Runtime, module: str) -> str:
    """Whom a message is for that says nothing but the module: the only member, or pipeline, or the one of its name."""
    names = [member.name for member in runtime.members]
    pipelines = [member.name for member in runtime.members if member.steps]
    for candidates in (names, pipelines):
        if len(candidates) == 1:
            return candidates[0]
    return next((name for name in (module, runtime.model) if name in names), "")
