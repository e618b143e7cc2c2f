"""Puts one agent process together: adapters behind the ports, the core from its record, the loop around both."""

import logging
import os
import signal
from pathlib import Path
from types import FrameType

from edge_agent import ports
from edge_agent.about import agent_version
from edge_agent.binding.keeper import BindingKeeper
from edge_agent.binding.relay import DrainedLink, InputRelay
from edge_agent.config import AgentConfig
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.delta.maker import FileDeltaMaker
from edge_agent.delta.process import ChildDecoding
from edge_agent.exchange import settle
from edge_agent.fetch import HttpBundleFetcher
from edge_agent.hook import CommandHook
from edge_agent.identity import DeviceIdentity, LiveIdentity
from edge_agent.keyholder import KeyHolder
from edge_agent.link.mqtt import MqttAddress, MqttLink, MqttTls
from edge_agent.preload import PreloadedFetcher
from edge_agent.renewal import CertificateRenewal
from edge_agent.reporting import SignedReports
from edge_agent.serving.handle import inherited_children, reap_in_background
from edge_agent.serving.inherited import Named, read_inherited
from edge_agent.serving.memory import SystemMemory
from edge_agent.serving.resources import Limiter
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_agent.shell.clock import SystemClock
from edge_agent.shell.control import ControlServer
from edge_agent.shell.dispatch import Dispatcher, Ports
from edge_agent.shell.operations import RecentLog, RunnerOperations
from edge_agent.shell.reexec import reexec, take_passed, take_signals
from edge_agent.shell.runner import Identity, Runner
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.boots import next_boot
from edge_agent.store.durable import disk_errors, make_folder
from edge_agent.store.journal import FileJournal
from edge_agent.store.lock import DataLock
from edge_agent.store.slots import FileSlotStore
from edge_agent.store.spool import SqliteSpool
from edge_agent.systemd import SystemdSupervisor, take_listen_fds
from edge_agent.tokens import DeviceTokens
from edge_agent.trust.child import ChildVerification
from edge_agent.trust.source import HttpMetadataSource
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log = logging.getLogger("edge_agent")


def run(config: AgentConfig, clock: ports.Clock | None = None) -> int:
    """Run an agent until SIGTERM or SIGINT, which end its workers as well. Called once, from the main thread.

    Does not return after SIGHUP: the process starts anew, from whatever is installed by then. Its workers go on
    serving, as they do when it ends in any other way, and the next agent adopts them.

    Args:
        config: What the agent is told.
        clock: Another clock than the system's.

    Returns:
        The exit code of the process, 0.

    Raises:
        EdgeError: `device.not-enrolled`, `device.busy`, `device.disk-*`, `config.*`: whatever keeps it from starting.
    """
    passed = take_passed(os.environ)
    named = take_listen_fds(os.environ) + (passed or [])
    children = frozenset() if passed is None else inherited_children()
    with DataLock(config.data / "lock"):
        settle(config.data)
        process = _Process(config, LiveIdentity(config.data), clock or SystemClock(), named)
        process.run(children)
        if process.is_reloading():
            reexec(process.release(), process.is_reloading)
        process.close()
    return 0


class _Process:
    """The parts of one process and the order in which they begin and end."""

    def __init__(self, config: AgentConfig, identity: LiveIdentity, clock: ports.Clock, named: list[Named]) -> None:
        who = identity.current()
        self._key = KeyHolder(identity.key)
        self._tokens = DeviceTokens(who.device, self._key, clock)
        with disk_errors(f"making {config.run}"):
            make_folder(config.run)
        systemd = SystemdSupervisor()
        journal = FileJournal(config.data / "journal.json")
        core = _restore(journal, who.device, config)
        boot = next_boot(config.data / "boots.json", clock.wall_ms())
        limiter = Limiter()
        self._spool = SqliteSpool(config.data / "spool.db", who.device, config.spool_bytes_max, boot)
        self._server = WorkerSupervisor(
            config.run,
            on_sample=lambda module, record: self._runner.sample_taken(module, record),
            on_exit=self._worker_exited,
            ports=config.serve.ports,
            host=config.serve.host,
            is_outlived=True,
            inherited=read_inherited(named),
            keeper=systemd,
            compiled_dir=config.data / "compiled",
            providers=config.serve.providers,
            tcp_token=_secret(config.serve.token_file, "the token for predictions over TCP"),
            limiter=limiter,
        )
        blobs = FileBlobStore(config.data, config.reserve_bytes, droppable=[config.data / "compiled"])
        remote = HttpBundleFetcher(who.url, self._tokens, blobs, who.registry_ca)
        floor = TimeFloor(config.data / "trust" / "time.json")
        renewal = CertificateRenewal(identity, config.data, clock, self._renewed)
        update = config.update
        outside = Ports(
            clock=clock,
            verifier=self._verifier(config.data / "trust", who, floor),
            fetcher=remote if config.preload is None else PreloadedFetcher(config.preload, blobs, remote),
            blobs=blobs,
            slots=FileSlotStore(config.data, blobs),
            server=self._server,
            gauge=SystemMemory(),
            hook=None if update.hook is None else CommandHook(update.hook, update.hook_timeout_ms),
            floor_ms=lambda: floor.floor_ms,
            duty=lambda wall_ms: renewal.duty(max(wall_ms, floor.floor_ms)),
            maker=FileDeltaMaker(blobs, ChildDecoding(on_start=limiter.put_last)) if update.deltas else None,
        )
        recent = RecentLog()
        logging.getLogger("edge_agent").addHandler(recent)
        operations = RunnerOperations(lambda: self._runner, config.run, recent, config.log_level)
        self._link, relay = _link(config, who, operations)
        link: ports.Link = self._link if relay is None else DrainedLink(self._link, relay)
        self._runner = Runner(
            core,
            Identity(who.device, self._spool.boot, who.platform, agent_version()),
            Dispatcher(who.platform, who.hardware_id, outside),
            clock,
            journal,
            link,
            self._spool,
            systemd,
            SignedReports(self._key, link),
        )
        self._binding = BindingKeeper(
            config.binding, who.device, config.run, config.data / "slots", self._server.live_manifests, relay=relay
        )
        self._control = ControlServer(
            config.run / "agent.sock", self._runner, self._addresses, lambda: {"binding": self._binding.report()}
        )

    def run(self, children: frozenset[int]) -> None:
        """Run until a signal; `children` are those of the program that this process was before.

        Workers go on when this ends with an exception: a bug in the agent is none of theirs.
        """

        def stop(_signum: int, _frame: FrameType | None) -> None:
            self._runner.stop()

        def reload(_signum: int, _frame: FrameType | None) -> None:
            self._runner.reload()

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, stop)
        signal.signal(signal.SIGHUP, reload)
        take_signals()
        self._server.adopt()
        reap_in_background(children - set(self._server.worker_pids))
        self._control.start()
        self._binding.start()
        try:
            self._runner.run()
        finally:
            self._control.stop()
            self._binding.stop()

    def is_reloading(self) -> bool:
        """Whether the next program in this process is to go on."""
        return self._runner.is_reloading

    def release(self) -> list[Named]:
        """Let go of everything for that one; gives what to pass on to it."""
        named = self._server.release()
        self._spool.close()
        self._key.close()
        return named

    def close(self) -> None:
        """End everything, workers too."""
        self._server.close()
        self._spool.close()
        self._key.close()

    def _verifier(self, folder: Path, who: DeviceIdentity, floor: TimeFloor) -> UptaneVerifier:
        def source(prefix: str) -> HttpMetadataSource:
            return HttpMetadataSource(who.url, prefix, self._tokens, who.registry_ca)

        verifier = UptaneVerifier(
            folder,
            who.device,
            director=source(f"/tuf/director/{who.device}"),
            image=source("/tuf/image"),
            installed=lambda: self._runner.release_counters,
            floor=floor,
            verify=ChildVerification(folder, who.device, who.url, self._tokens, who.registry_ca),
        )
        verifier.seed(*who.roots())
        return verifier

    def _renewed(self) -> None:
        if isinstance(self._link, MqttLink):
            self._link.reconnect()

    def _worker_exited(self, module: str, manifest: Digest) -> None:
        self._runner.post(inputs.WorkerExited(module, manifest))

    def _addresses(self, module: str) -> JsonObject:
        limits = self._server.limits_in_force(module)
        try:
            unix, host, port = self._server.addresses(module)
        except EdgeError:
            return {"unix": None, "tcp": None, "limits": limits}  # it has not served anything yet
        return {"unix": str(unix), "tcp": f"{host}:{port}", "limits": limits}


def _restore(journal: FileJournal, device: str, config: AgentConfig) -> Agent:
    """The core from its record. A record that nobody can read is given up: what is assigned is installed again."""
    try:
        record = journal.load()
        if record is not None:
            return Agent.restore(record, device, config.poll_ms, config.report_ms, config.update.scrub_ms)
    except EdgeError as error:
        if error.code.startswith("device."):
            raise
        _log.error("the record is lost, the device starts anew from signed metadata: %s", error)
    return Agent(device, config.poll_ms, config.report_ms, scrub_ms=config.update.scrub_ms)


def _link(
    config: AgentConfig, who: DeviceIdentity, operations: ports.Operations
) -> tuple[ports.Link, InputRelay | None]:
    """The link, and what carries a module's inputs and outputs where it is one of IoT Edge."""
    hub = config.iothub
    if hub is None:
        return MqttLink(_broker(config, who), who.device, is_persistent=config.mqtt.persistent), None
    for file in hub.secret_files():
        try:
            if file.stat().st_mode & 0o077:
                _log.warning("others may read %s, which holds a secret: chmod 600", file)
        except OSError as error:
            raise EdgeError("config.file-missing", f"{file} cannot be read: {error.strerror}") from None
    # A device without Azure keeps none of this in memory.
    from edge_agent.link.iothub import IotHubLink
    from edge_agent.link.iothub_sdk import AzureSdk

    sdk = AzureSdk(hub, who.device, config.data)
    link = IotHubLink(sdk, operations=operations, methods=hub.methods)
    return link, InputRelay(link) if hub.is_edge or hub.module else None


def _broker(config: AgentConfig, who: DeviceIdentity) -> MqttAddress:
    told, said = config.mqtt, who.broker
    host = told.host or (said.host if said else "")
    if not host:
        raise EdgeError(
            "config.invalid",
            "no MQTT broker is known: the registry named none at enrolment",
            "Set mqtt.host (and mqtt.port, mqtt.tls) in the agent's configuration.",
        )
    uses_tls = told.tls if told.tls is not None else bool(said and said.tls)
    port = told.port or (said.port if said else 8883 if uses_tls else 1883)
    tls = MqttTls(told.ca or who.broker_ca, who.link_certificate, who.link_key) if uses_tls else None
    return MqttAddress(host, port, tls, told.username, _secret(told.password_file, "the broker's password"))


def _secret(file: Path | None, what: str) -> str:
    """The text of a file that holds a secret; empty without a file. One that holds nothing is no secret.

    Raises:
        EdgeError: `config.file-missing`, `config.invalid`.
    """
    if file is None:
        return ""
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise EdgeError("config.file-missing", f"{what} in {file} cannot be read: {error}") from None
    if not secret:
        raise EdgeError("config.invalid", f"{what} in {file} is empty", "Write it there, or leave the option out.")
    return secret
