"""The command `edge-agent infer`. Nothing heavy is imported before it runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_Decorator = Callable[[Any], Any]
_ELEMENTS_SHOWN: Final = 64


def _write_arrays(path: Path, outputs: JsonObject) -> None:
    from edge_agent.inference_arrays import save_arrays

    save_arrays(path, outputs)


def infer_command(
    config_options: _Decorator,
    json_option: _Decorator,
    find_run: Callable[[Path | None, Path | None, Path | None], Path],
) -> click.Command:
    """Make the command.

    Args:
        config_options: Adds the options of every command that needs the agent's configuration.
        json_option: Adds `--json`.
        find_run: Gives the agent's run directory, from what those options say.
    """

    @click.command()
    @click.option("--module", required=True, help="Which module to ask; `edge-agent status` lists them.")
    @click.option("--model", help="Which of the module's models; not needed when it has one.")
    @click.option(
        "--input",
        "sources",
        required=True,
        multiple=True,
        metavar="[NAME=]FILE",
        help="An input: JSON (- reads it from standard input), .npy, .npz, or any file as bytes. May be repeated.",
    )
    @click.option("--output", type=click.Path(path_type=Path), help="Write the outputs to this .npz (or .npy) file.")
    @click.option("--repeat", type=click.IntRange(1, 1_000_000), default=1, help="Ask so often and sum up the latency.")
    @click.option("--http", "is_http", is_flag=True, help="By HTTP, also what would go as frames (arrays and files).")
    @config_options
    @json_option
    def infer(
        module: str,
        model: str | None,
        sources: tuple[str, ...],
        output: Path | None,
        repeat: int,
        is_http: bool,
        config_file: Path | None,
        data: Path | None,
        run_dir: Path | None,
        as_json: bool,
    ) -> None:
        """Ask a live model for a prediction, over the module's unix socket.

        JSON is a request of the Open Inference Protocol, or simply the tensor of a model with one input, or an object
        of tensors by input name, or whatever a script model takes. A file that is neither JSON nor numpy's, such as an
        image, is one element of an input of BYTES.

        \b
        Examples:
          echo '[[0.1, 0.2, 0.3]]' | edge-agent infer --module digits --input -
          edge-agent infer --module digits --input batch.npy --output scores.npz
          edge-agent infer --module shapes --input image=cat.jpg --input limit=limit.json
          edge-agent infer --module digits --input batch.npy --repeat 1000 --json
        """  # noqa: D301
        from edge_agent.predict import predict, read_inputs

        if output is not None and output.suffix not in (".npy", ".npz"):
            raise EdgeError("config.invalid", f"outputs are written as .npy or .npz, not as {output.name}")
        given = read_inputs(sources, sys.stdin.buffer.read)
        answer = predict(find_run(config_file, data, run_dir), module, model or module, given, repeat, not is_http)
        if output is not None:
            _write_arrays(output, answer["outputs"])
        click.echo(json.dumps(answer, indent=2) if as_json else _text(answer))

    command: click.Command = infer
    return command


def _text(answer: JsonObject) -> str:
    lines = [f"{answer['model']}:{answer['version']}  {answer['manifest']}"]
    rows = [
        (name, f"{output['datatype']}{output['shape']}", _shown(output["data"]))
        for name, output in answer["outputs"].items()
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines += [f"{name:{widths[0]}}  {kind:{widths[1]}}  {data}" for name, kind, data in rows]
    if answer["result"] is not None:
        lines.append(json.dumps(answer["result"]))
    if (latency := answer.get("latency")) is not None:
        names = ("count", "mean_us", "p50_us", "p90_us", "p99_us", "max_us", "per_s")
        heads = ("requests", "mean µs", "p50 µs", "p90 µs", "p99 µs", "max µs", "per second")
        lines += ["", "  ".join(f"{head:>10}" for head in heads)]
        lines.append("  ".join(f"{latency[name]:>10}" for name in names))
    return "\n".join(lines)


def _shown(data: list[Any]) -> str:
    text = json.dumps(data[:_ELEMENTS_SHOWN])
    return text if len(data) <= _ELEMENTS_SHOWN else f"{text[:-1]}, ... {len(data)} in all]"
