"""The agent as a module of Azure IoT Edge: its configuration and its identity come from the container's environment.

A container starts with variables and no person beside it. So the first start enrols by itself, trying again while the
registry cannot be reached; later starts find the identity in the data directory, which has to outlive the container.
The module's own identity at its hub is IoT Edge's affair and comes anew with each connection (ADR 35).
"""

import contextlib
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edge_agent.config import LOG_LEVELS, AgentConfig, IotHubConfig, ServeConfig
from edge_agent.control import ask
from edge_agent.enroll import enroll
from edge_agent.exchange import settle
from edge_agent.identity import load_identity
from edge_agent.keyuri import FILE_DEFAULT
from edge_agent.limits import (
    CERTIFICATE_BYTES_MAX,
    ENROL_RETRY_MS_FIRST,
    ENROL_RETRY_MS_MAX,
    ENROL_TRIES_MAX,
    HEALTH_MS_MAX,
    PORT_MAX,
    TOKEN_CHARS_MAX,
)
from edge_agent.store import durable
from edge_agent.store.lock import DataLock
from edge_contract.codes import CODES, Disposition
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import MODULES_MAX, PERIOD_MS_MAX, PERIOD_MS_MIN
from edge_contract.names import model_name

_LOG: Final = logging.getLogger(__name__)

TOKEN: Final = "LIGHTERMAN_ENROLMENT_TOKEN"
PRELOAD_DEFAULT: Final = Path("/opt/lighterman/bundle")
_URL: Final = "LIGHTERMAN_REGISTRY_URL"
_CA: Final = "LIGHTERMAN_REGISTRY_CA"
_ENROLLING: Final = "enrolling"
_OF_EDGE: Final = (
    "IOTEDGE_WORKLOADURI",
    "IOTEDGE_DEVICEID",
    "IOTEDGE_MODULEID",
    "IOTEDGE_MODULEGENERATIONID",
    "IOTEDGE_IOTHUBHOSTNAME",
    "IOTEDGE_GATEWAYHOSTNAME",
    "IOTEDGE_APIVERSION",
)
_OF_DEBUGGING: Final = ("EdgeHubConnectionString", "EdgeModuleCACertificateFile")


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the first start enrols with.

    Attributes:
        url: Base URL of the registry; empty where the environment names none.
        token: One-time token; empty where there is none.
        token_file: File that holds it, or none.
        ca_file: Certificates to trust for https, or none.
        ca: The same as PEM text, or empty.
        hardware_id: For bundles that are for certain hardware alone.
        key_uri: Where the private key is made.
        key_type: What key is made.
    """

    url: str = ""
    token: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    ca: str = ""
    hardware_id: str = ""
    key_uri: str = FILE_DEFAULT
    key_type: str = "p256"

    def __repr__(self) -> str:
        """Without the token."""
        return f"Invitation(url={self.url!r})"


def require_edge(environment: Mapping[str, str]) -> None:
    """Refuse to run where IoT Edge has not started us.

    Raises:
        EdgeError: `config.invalid`, naming what is missing.
    """
    missing = [name for name in _OF_EDGE if not environment.get(name)]
    if missing and not all(environment.get(name) for name in _OF_DEBUGGING):
        raise EdgeError(
            "config.invalid",
            f"this is no module of Azure IoT Edge: {', '.join(missing)} not set",
            "IoT Edge sets these variables for its modules. Elsewhere use: edge-agent enroll, edge-agent run.",
        )


def read_invitation(environment: Mapping[str, str]) -> Invitation:
    """What the environment says of enrolment.

    Raises:
        EdgeError: `config.invalid`.
    """
    if environment.get(TOKEN) and environment.get(f"{TOKEN}_FILE"):
        raise EdgeError("config.invalid", f"{TOKEN} and {TOKEN}_FILE are both set", "Set one of them.")
    if environment.get(_CA) and environment.get(f"{_CA}_FILE"):
        raise EdgeError("config.invalid", f"{_CA} and {_CA}_FILE are both set", "Set one of them.")
    return Invitation(
        url=environment.get(_URL, ""),
        token=environment.get(TOKEN, ""),
        token_file=_path(environment, f"{TOKEN}_FILE"),
        ca_file=_path(environment, f"{_CA}_FILE"),
        ca=environment.get(_CA, ""),
        hardware_id=environment.get("LIGHTERMAN_HARDWARE_ID", ""),
        key_uri=environment.get("LIGHTERMAN_KEY") or FILE_DEFAULT,
        key_type=_choice(environment, "LIGHTERMAN_KEY_TYPE", ("p256", "ed25519"), "p256"),
    )


def configure(config: AgentConfig, environment: Mapping[str, str]) -> AgentConfig:
    """Let the environment override a configuration.

    Raises:
        EdgeError: `config.invalid`, naming the variable.
    """
    serve = config.serve
    preload = _path(environment, "LIGHTERMAN_AGENT_PRELOAD") or config.preload
    return replace(
        config,
        poll_ms=_integer(environment, "LIGHTERMAN_POLL_MS", PERIOD_MS_MIN, PERIOD_MS_MAX, config.poll_ms),
        report_ms=_integer(environment, "LIGHTERMAN_REPORT_MS", PERIOD_MS_MIN, PERIOD_MS_MAX, config.report_ms),
        log_level=_choice(environment, "LIGHTERMAN_LOG_LEVEL", LOG_LEVELS, config.log_level),
        iothub=config.iothub or IotHubConfig(is_edge=True),
        preload=preload or (PRELOAD_DEFAULT if PRELOAD_DEFAULT.is_dir() else None),
        serve=ServeConfig(
            environment.get("LIGHTERMAN_SERVE_HOST") or serve.host,
            _ports(environment) or serve.ports,
            serve.providers,
            _path(environment, "LIGHTERMAN_SERVE_TOKEN_FILE") or serve.token_file,
        ),
    )


def ensure_enrolled(
    config: AgentConfig,
    environment: MutableMapping[str, str],
    wait: Callable[[float], None] = time.sleep,
    tries_max: int = ENROL_TRIES_MAX,
) -> None:
    """Enrol this device unless it is; tries again, with capped and jittered waits, while that may help.

    Args:
        config: Where the identity is kept.
        environment: Says with what to enrol; the token is taken out of it, so that no process started later has it.
        wait: Waits for seconds.
        tries_max: After so many failures the last one is final; IoT Edge starts the container anew then.

    Raises:
        EdgeError: As `edge_agent.enroll.enroll`.
    """
    invitation = read_invitation(environment)
    environment.pop(TOKEN, None)
    if _is_enrolled(config.data, invitation.url):
        return
    if not invitation.url:
        hint = f"Set {_URL}, and {TOKEN} or {TOKEN}_FILE, in the module's environment."
        raise EdgeError("config.invalid", f"this module is not enrolled, and {_URL} is not set", hint)
    with _enrolling(config.run), _ca(invitation) as ca:
        for tries in range(1, tries_max + 1):
            try:
                # Read anew each time: a file may be put there after the container has started.
                identity = enroll(
                    invitation.url,
                    invitation.token or _token(invitation.token_file),
                    config.data,
                    hardware_id=invitation.hardware_id,
                    ca=ca,
                    key_uri=invitation.key_uri,
                    key_type=invitation.key_type,
                )
                _LOG.info("enrolled as %s at %s", identity.device, invitation.url)
                return
            except EdgeError as error:
                may_help = CODES[error.code].disposition is Disposition.RETRY or error.code == "config.file-missing"
                if not may_help or tries == tries_max:
                    raise
                full = min(ENROL_RETRY_MS_MAX, ENROL_RETRY_MS_FIRST << (tries - 1)) / 1000
                pause_s = full / 2 + random.uniform(0, full / 2)
                _LOG.warning("not enrolled: %s; the next try, %d, is in %.1f s", error, tries + 1, pause_s)
            wait(pause_s)


def check_health(run: Path) -> JsonObject:
    """Whether the module works: its loop answers, and every model that is live is being served.

    Being offline is no fault of the container, which a restart could heal; neither is waiting to enrol.

    Args:
        run: The agent's run directory.

    Returns:
        `healthy`, and `why` not.
    """
    try:
        status = ask(run, {"op": "status"}, HEALTH_MS_MAX)["status"]
    except EdgeError as error:
        if error.code == "network.unreachable" and (run / _ENROLLING).exists():
            return {"healthy": True, "why": "it waits for its registry to enrol it"}
        return {"healthy": False, "why": str(error)}
    silent = [
        name for name, module in sorted(status["modules"].items()) if module.get("live") and not module.get("serving")
    ]
    if silent:
        return {"healthy": False, "why": f"not served: {', '.join(silent)}"}
    return {"healthy": True, "why": ""}


def _is_enrolled(data: Path, url: str) -> bool:
    with DataLock(data / "lock"):
        settle(data)
        try:
            identity = load_identity(data)
        except EdgeError as error:
            if error.code != "device.not-enrolled":
                raise
            return False
    if url and identity.url.rstrip("/") != url.rstrip("/"):
        _LOG.warning("this device is enrolled at %s, and goes on so; %s names %s", identity.url, _URL, url)
    return True


@contextlib.contextmanager
def _enrolling(run: Path) -> Iterator[None]:
    """A mark that health checks look for. It outlives no container: each start makes it again, or removes it."""
    with durable.disk_errors(f"making {run}"):
        durable.make_folder(run)
        (run / _ENROLLING).touch()
    try:
        yield
    finally:
        (run / _ENROLLING).unlink(missing_ok=True)


@contextlib.contextmanager
def _ca(invitation: Invitation) -> Iterator[Path | None]:
    """The registry's certificates as a file."""
    if not invitation.ca:
        yield invitation.ca_file
        return
    if len(invitation.ca) > CERTIFICATE_BYTES_MAX:
        raise EdgeError("config.invalid", f"{_CA} has more than {CERTIFICATE_BYTES_MAX} characters")
    with tempfile.NamedTemporaryFile("w", suffix=".pem", encoding="utf-8") as file:
        file.write(invitation.ca.replace("\\n", "\n") + "\n")  # deployment manifests are JSON in JSON, often
        file.flush()
        yield Path(file.name)


def _token(file: Path | None) -> str:
    if file is None:
        hint = f"Set {TOKEN}, or {TOKEN}_FILE to a file that is mounted into the container."
        raise EdgeError("config.invalid", "this module is not enrolled, and there is no enrolment token", hint)
    try:
        with file.open(encoding="utf-8") as source:
            return source.read(TOKEN_CHARS_MAX + 1)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EdgeError("config.file-missing", f"the token file {file} cannot be read: {reason}") from None


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name, "")
    return Path(text).absolute() if text else None


def _choice(environment: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    text = environment.get(name) or default
    if text not in allowed:
        raise EdgeError("config.invalid", f"{name} is {text[:80]!r}, it has to be one of: {', '.join(allowed)}")
    return text


def _integer(environment: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16 and low <= int(text) <= high):
        raise EdgeError("config.invalid", f"{name} is {text[:80]!r}, it has to be a whole number from {low} to {high}")
    return int(text)


def _ports(environment: Mapping[str, str]) -> dict[str, int]:
    """TCP ports by module, from `digits=8080,other=8081`."""
    name = "LIGHTERMAN_SERVE_PORTS"
    ports: dict[str, int] = {}
    for item in filter(None, environment.get(name, "").split(",")):
        module, _, port = item.strip().partition("=")
        try:
            ports[model_name(module)] = _integer({name: port or "?"}, name, 1, PORT_MAX, 0)
        except ContractError as error:
            raise EdgeError("config.invalid", f"{name}: {error.detail}", "Write it as digits=8080,other=8081") from None
    if len(ports) > MODULES_MAX or len(set(ports.values())) != len(ports):
        raise EdgeError("config.invalid", f"{name} names a port twice, or more than {MODULES_MAX} modules")
    return ports


def run_module(config: AgentConfig) -> int:
    """Enrol where that is needed, then run the agent until SIGTERM or SIGINT. Called once, from the main thread.

    Returns:
        The exit code of the process, 0.

    Raises:
        EdgeError: As `ensure_enrolled` and `edge_agent.shell.main.run`.
    """
    from edge_agent.shell.main import run

    (config.run / _ENROLLING).unlink(missing_ok=True)
    ensure_enrolled(config, os.environ)
    return run(config)
