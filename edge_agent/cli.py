"""The command line `edge-agent`. What a command needs is imported when it runs, so that `--help` is quick."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edge_agent.infer_command import infer_command
from edge_agent.module_command import healthcheck_command, module_command
from edge_agent.tuf import tuf
from edge_agent.web.command import serve
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.terms import PPM

if TYPE_CHECKING:
    from edge_agent.config import AgentConfig

_F = TypeVar("_F", bound=Callable[..., Any])
_JSON: Final = "edge_agent.cli.json"
_RELAYED: Final = ("inputs", "outputs", "unanswered", "parked", "invalid", "outputs_waiting", "outputs_dropped")
_LOG_FORMAT: Final = "%(levelname)s %(name)s: %(message)s"

_EPILOG: Final = """\b
Exit codes: 0 done, 1 no, 2 configuration, 3 trust, 4 artifact, 5 model, 6 device, 7 network, 8 cloud, 70 a bug.

\b
Shell completion, for this shell or at the end of ~/.bashrc or ~/.zshrc:
  eval "$(_EDGE_AGENT_COMPLETE=bash_source edge-agent)"
  eval "$(_EDGE_AGENT_COMPLETE=zsh_source edge-agent)"
  _EDGE_AGENT_COMPLETE=fish_source edge-agent | source
"""


class _Group(click.Group):
    """Turns operating errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            if ctx.meta.get(_JSON):
                click.echo(json.dumps({"error": error.to_json()}, indent=2))
            else:
                click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


def _remember_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value


def _json_option(command: _F) -> _F:
    return click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=_remember_json, help="Print JSON instead of text."
    )(command)


def _config_options(command: _F) -> _F:
    for decorate in (
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            envvar="LIGHTERMAN_AGENT_CONFIG",
            help="Configuration file; /etc/lighterman/edge-agent.toml when it exists.",
        ),
        click.option(
            "--run-dir",
            type=click.Path(path_type=Path),
            envvar="LIGHTERMAN_AGENT_RUN",
            help="Directory of the agent's sockets; DATA/run by default.",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            envvar="LIGHTERMAN_AGENT_DATA",
            help="Data directory; /var/lib/lighterman by default.",
        ),
    ):
        command = decorate(command)
    return command


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lighterman", prog_name="edge-agent")
def main() -> None:
    """Runs models on this device: pulls what the registry assigns, verifies it, swaps it in, answers predictions.

    \b
    Begin with:
      edge-agent enroll --url https://registry.example --token-file token.txt
      edge-agent run
    and ask, from another terminal:
      edge-agent status
      echo '[[0.1, 0.2]]' | edge-agent infer --module digits --input -
    """  # noqa: D301 (click's mark for a paragraph that keeps its lines)


main.add_command(tuf)
main.add_command(serve)


@main.command()
@click.option("--url", required=True, help="Base URL of the registry, for example https://registry.example:8400.")
@click.option(
    "--token",
    envvar="LIGHTERMAN_ENROL_TOKEN",
    help="One-time token, - to read it from stdin. Others may see it in the process list: prefer a file.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="File that holds the token; - reads it from stdin.",
)
@click.option(
    "--hardware-id", default="", help="For bundles that are for certain hardware alone, for example jetson-nano-b01."
)
@click.option("--ca", type=click.Path(path_type=Path), help="Certificates to trust for https; the system's by default.")
@click.option(
    "--key",
    "key_uri",
    default="file:device.key",
    show_default=True,
    help="Where the private key is made: a file in the identity's folder, or a PKCS#11 token (RFC 7512).",
)
@click.option(
    "--key-type", type=click.Choice(["p256", "ed25519"]), default="p256", show_default=True, help="What key is made."
)
@click.option("--force", is_flag=True, help="Replace the identity this device has.")
@_config_options
@_json_option
def enroll(
    url: str,
    token: str | None,
    token_file: Path | None,
    hardware_id: str,
    ca: Path | None,
    key_uri: str,
    key_type: str,
    force: bool,
    config_file: Path | None,
    data: Path | None,
    run_dir: Path | None,
    as_json: bool,
) -> None:
    """Give this device an identity, with a one-time token from an operator.

    The operator gets the token with `cloud-registry devices enrol-token NAME`. The device makes its own key, which
    never leaves it; the token decides the device's name. Also read from the environment: LIGHTERMAN_ENROL_TOKEN.

    With a PKCS#11 token or a TPM (through tpm2-pkcs11) the key is made on it. Its PIN is read from the file that the
    URI names as pin-source (mode 0600), or from the environment: LIGHTERMAN_KEY_PIN.

    \b
    Examples:
      edge-agent enroll --url https://registry.example --token-file token.txt --data /var/lib/lighterman
      edge-agent enroll --url https://registry.example --token-file - \\
        --key 'pkcs11:token=dev;object=lighterman?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pin'
    """  # noqa: D301
    from edge_agent.enroll import enroll as enroll_device

    config = _config(config_file, data, run_dir)
    secret = _token(token, token_file)
    identity = enroll_device(
        url,
        secret,
        config.data,
        hardware_id=hardware_id,
        ca=ca,
        is_forced=force,
        key_uri=key_uri,
        key_type=key_type,
    )
    if as_json:
        about = {"device": identity.device, "platform": identity.platform, "data": str(config.data)}
        key = {"key": identity.key.kind, "keyid": identity.key.keyid, "valid_until_ms": identity.valid.until_ms}
        _print(about | key)
    else:
        click.echo(f"enrolled as {identity.device} ({identity.platform}); next: edge-agent run --data {config.data}")


def _token(token: str | None, file: Path | None) -> str:
    from edge_agent.limits import TOKEN_CHARS_MAX

    if file is None and token == "-":
        file = Path("-")
    if file is not None:
        try:
            with click.open_file(str(file), encoding="utf-8") as source:
                return str(source.read(TOKEN_CHARS_MAX + 1))
        except (OSError, UnicodeError) as error:
            raise EdgeError("config.file-missing", f"the token file {file} cannot be read: {error}") from None
    if not token:
        raise EdgeError("config.invalid", "no enrolment token was given", "Give --token-file FILE or --token TOKEN.")
    return token


@main.command()
@_config_options
def run(config_file: Path | None, data: Path | None, run_dir: Path | None) -> None:
    """Run the agent in the foreground until SIGTERM or SIGINT.

    Started by systemd it tells it when it is ready and that it is alive (see deploy/systemd). Logs go to standard
    error.
    """
    config = _config(config_file, data, run_dir)
    logging.basicConfig(level=config.log_level.upper(), format=_LOG_FORMAT, stream=sys.stderr)
    from edge_agent.shell.main import run as run_agent

    click.get_current_context().exit(run_agent(config))


@main.command()
@_config_options
@_json_option
def status(config_file: Path | None, data: Path | None, run_dir: Path | None, as_json: bool) -> None:
    """Show what is live, what is under way, what was refused, and how much telemetry waits."""
    from edge_agent.control import ask

    config = _config(config_file, data, run_dir)
    found: JsonObject = ask(config.run, {"op": "status"})["status"]
    found["key"] = _key_of(config.data)
    if as_json:
        _print(found)
    else:
        click.echo(_status_text(found))


main.add_command(infer_command(_config_options, _json_option, lambda *given: _config(*given).run))
main.add_command(module_command(_config_options, lambda *given: _config(*given)))
main.add_command(healthcheck_command(_config_options, lambda *given: _config(*given)))


@main.command()
@click.option("--all", "is_all", is_flag=True, help="Also blobs that no bundle needs, and the journal.")
@_config_options
@_json_option
def verify(is_all: bool, config_file: Path | None, data: Path | None, run_dir: Path | None, as_json: bool) -> None:
    """Read every bundle on this device again and compare every byte with its signed digest.

    Nothing is changed; the agent may run meanwhile. Exit code 6 when something is damaged.
    """
    from edge_agent.audit import audit

    findings = audit(_config(config_file, data, run_dir).data, is_all)
    bad = [finding.error for finding in findings if finding.error is not None]
    if as_json:
        _print({"findings": [finding.to_json() for finding in findings], "damaged": len(bad)})
    else:
        for finding in findings:
            click.echo(f"{finding.kind:8} {finding.name:32} {'ok' if finding.error is None else finding.error}")
        click.echo(f"{len(findings)} read, {len(bad)} damaged")
    if bad:
        click.get_current_context().exit(bad[0].exit_code)


@main.command()
@_config_options
@_json_option
def reload(config_file: Path | None, data: Path | None, run_dir: Path | None, as_json: bool) -> None:
    """Let the running agent start anew in place, for example after an upgrade; no prediction is lost.

    It reads its configuration again and runs whatever is installed now. Models go on answering meanwhile, from the
    processes that they are in. The signal SIGHUP does the same (systemctl reload lighterman-agent).
    """
    from edge_agent.control import ask_reload

    found = ask_reload(_config(config_file, data, run_dir).run)
    if as_json:
        _print(found)
    else:
        click.echo(f"the agent runs anew, version {found['agent_version']}")


@main.command()
@click.argument("module")
@_config_options
@_json_option
def rollback(module: str, config_file: Path | None, data: Path | None, run_dir: Path | None, as_json: bool) -> None:
    """Make MODULE answer with its previous bundle again.

    The bundle that is live now is not tried again on this device; a newer deployment is.
    """
    from edge_agent.control import ask

    reply = ask(_config(config_file, data, run_dir).run, {"op": "rollback", "module": module})
    if as_json:
        _print({"module": module, "fallback": reply.get("fallback")})
    else:
        click.echo(f"{module} goes back to {reply.get('fallback')}; `edge-agent status` shows when it is live")


@main.command()
@click.argument("module", required=False)
@_config_options
@_json_option
def hold(module: str | None, config_file: Path | None, data: Path | None, run_dir: Path | None, as_json: bool) -> None:
    """Hold updates back on this device, or those of MODULE alone, until `resume`.

    What is live goes on answering; probation, rollback and healing go on. Whatever else is under way stops where it
    may be interrupted. It outlives restarts.
    """
    _ask_about("hold", module, _config(config_file, data, run_dir), as_json)
    if not as_json:
        click.echo(f"updates of {module or 'this device'} are held back; `edge-agent resume` lets them go on")


@main.command()
@click.argument("module", required=False)
@_config_options
@_json_option
def resume(
    module: str | None, config_file: Path | None, data: Path | None, run_dir: Path | None, as_json: bool
) -> None:
    """Let updates go on after `hold`, all of them or those of MODULE alone."""
    _ask_about("resume", module, _config(config_file, data, run_dir), as_json)
    if not as_json:
        click.echo(f"updates of {module or 'this device'} go on")


def _ask_about(op: str, module: str | None, config: "AgentConfig", as_json: bool) -> None:
    from edge_agent.control import ask

    ask(config.run, {"op": op, "module": module or ""})
    if as_json:
        _print({"op": op, "module": module})


@main.command()
@_config_options
@_json_option
def renew(config_file: Path | None, data: Path | None, run_dir: Path | None, as_json: bool) -> None:
    """Renew this device's certificate now; a key in a file is replaced by a new one.

    The agent does it by itself when two thirds of the certificate's life are over. It may run meanwhile.
    """
    from edge_agent.renewal import renew as renew_certificate
    from edge_agent.shell.clock import SystemClock

    identity = renew_certificate(_config(config_file, data, run_dir).data, SystemClock())
    if as_json:
        about = {"device": identity.device, "key": identity.key.kind, "keyid": identity.key.keyid}
        _print({**about, "valid_until_ms": identity.valid.until_ms})
    else:
        click.echo(f"renewed: {identity.key.kind}, good until {_instant(identity.valid.until_ms)}")


@main.group()
def config() -> None:
    """Look at configuration files."""


@config.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@_json_option
def config_check(file: Path, as_json: bool) -> None:
    """Check FILE and show what the agent would use."""
    from dataclasses import asdict

    from edge_agent.config import load_config

    values = asdict(load_config(file))
    if as_json:
        _print(values)
        return
    click.echo(f"{file} is valid")
    for key, value in values.items():
        click.echo(f"  {key} = {value}")


def _config(file: Path | None, data: Path | None, run_dir: Path | None) -> "AgentConfig":
    from edge_agent.config import load_config

    return load_config(file, data, run_dir)


def _print(value: JsonObject) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def _key_of(data: Path) -> JsonObject | None:
    """Which key this device has and how long its certificate is good, where whoever asks may know."""
    from edge_agent.identity import load_identity

    try:
        identity = load_identity(data)
    except EdgeError:
        return None
    return {"kind": identity.key.kind, "keyid": identity.key.keyid, "valid_until_ms": identity.valid.until_ms}


def _instant(wall_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _status_text(found: JsonObject) -> str:
    spool = found["spool"]
    online = "online" if found["online"] else "offline"
    held = "  updates are held" if found.get("held") else ""
    lines = [f"{found['device']}  {online}  director version {found['director_version']}{held}"]
    if (key := found.get("key")) is not None:
        lines.append(
            f"key: {key['kind']} {key['keyid'][:12]}, certificate good until {_instant(key['valid_until_ms'])}"
        )
    if not found.get("clock_trusted", True):
        lines.append("the clock is behind a time that has certainly passed; updates are judged by that time instead")
    waiting = f"{spool['records']} records, {spool['bytes']} bytes"
    lines.append(f"telemetry waiting: {waiting}; dropped: {spool['dropped']}")
    if found.get("error"):
        lines.append(f"error: {found['error']['detail']} [{found['error']['code']}]")
    if not found["modules"]:
        lines.append("no modules yet: nothing is assigned to this device")
    for name, module in found["modules"].items():
        lines += _module_lines(name, module)
    if (binding := found.get("binding")) is not None:
        lines += _binding_lines(binding)
    return "\n".join(lines)


def _module_lines(name: str, module: JsonObject) -> list[str]:
    live = (
        "nothing live" if module["live"] is None else f"{module['model']}:{module['version']} {_short(module['live'])}"
    )
    serving = "serving" if module["serving"] else "not serving"
    held = ", held" if module.get("held") else ""
    where = f"{module.get('unix', '')} {module.get('tcp', '')}"
    lines = [f"{name}: {live}, {serving}, {module['phase']}{held}  {where}"]
    answering = module.get("answering")
    if answering is not None and answering != module["live"]:
        lines.append(f"  another bundle answers: {_short(answering)}")
    if module.get("gap_ms"):
        lines.append(f"  the last activation left {module['gap_ms']} ms without an answer")
    lines += _limit_lines(module.get("limits") or {})
    if trial := module.get("trial"):
        lines.append(
            f"  trial: {trial['compared']} predictions compared, {trial['failed']} failed, "
            f"{trial['top1_ppm'] / PPM:.1%} with the same largest output, distance {trial['distance_ppm'] / PPM:.4f}"
        )
    for what in ("deployment", "refused"):
        deployment = module.get(what)
        if deployment and deployment.get("error"):
            problem = deployment["error"]
            outcome = deployment["outcome"] or "waiting"
            lines.append(f"  {deployment['deployment']} {outcome}: {problem['detail']} [{problem['code']}]")
    if problem := module.get("error"):
        lines.append(f"  {problem['detail']} [{problem['code']}]")
    return lines


def _limit_lines(limits: JsonObject) -> list[str]:
    """What bounds the worker, and what the policy wants and this machine does not give."""
    lines = [
        f"  bounded: {name} {found['value']}, by {found['by']}" for name, found in (limits.get("applied") or {}).items()
    ]
    return lines + [f"  not bounded: {name}: {reason}" for name, reason in (limits.get("refused") or {}).items()]


def _binding_lines(binding: JsonObject) -> list[str]:
    lines = [f"bindings: {binding['phase']}  {binding.get('broker', '')}".rstrip()]
    if binding.get("error"):
        lines.append(f"  {binding['error']}")
    for name, module in binding["modules"].items():
        if module is None:
            lines.append(f"  {name}: no bindings run")
            continue
        link = f"connected, {_spoken(module)}" if module["online"] else f"not connected {module['error']}"
        lines.append(f"  {name}: {link}".rstrip())
        lines += [f"    the broker does not let it subscribe to {topic}" for topic in module.get("denied", ())]
        for bound, about in module["bindings"].items():
            counts = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in _told(about["counts"]))
            topics = f"{about['input_topic']} -> {about['output_topic']}"
            lines.append(f"    {bound}: {topics}  {counts or 'no message yet'}")
            if about["waiting"]:
                lines.append(f"      {about['waiting']} waiting")
    if relay := binding.get("relay"):
        counts = ", ".join(f"{relay[word]} {word.replace('_', ' ')}" for word in _RELAYED if relay[word])
        lines.append(f"  IoT Edge: {counts or 'no message yet'}")
        lines += [f"    {count} dropped at the input {name}" for name, count in relay["dropped"].items()]
    for item in binding.get("refused", ()):
        lines.append(f"  {item['module']}/{item['binding']} does not run: {item['why']}")
    lines += [f"  {name}: {why}" for name, why in binding.get("errors", {}).items()]
    return lines


def _spoken(module: JsonObject) -> str:
    protocol = str(module["protocol"])
    return f"MQTT {protocol}" if protocol[:1].isdigit() else protocol


def _told(counts: JsonObject) -> list[tuple[str, int]]:
    words = ("answered", "invalid", "failed", "dropped", "passed_over", "unpublished", "duplicates", "retries")
    return [(word, counts[word]) for word in words if counts[word]]


def _short(digest: str) -> str:
    return digest[7:19]


if __name__ == "__main__":
    main()
