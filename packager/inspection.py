"""Shows what is in a bundle, as JSON for programs and as text for people."""

from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.limits import MIB
from edge_contract.manifest import Descriptor, plan_bytes
from edge_contract.runtime import Runtime
from packager.bundle import Bundle, BundleSet

CONFIG_BYTES_MAX = 1 * MIB
_UNITS = ("B", "KiB", "MiB", "GiB")


def inspect(bundles: BundleSet) -> JsonObject:
    """Everything about a bundle that its documents say.

    Raises:
        EdgeError: `artifact.*` when a document cannot be read.
    """
    return {
        "model": bundles.model,
        "version": bundles.version,
        "index": str(bundles.index_digest),
        "hardware_ids": list(bundles.hardware_ids),
        "release_counter": bundles.release_counter,
        "bytes": plan_bytes(bundles.blobs),
        "platforms": [_platform(bundles, item) for item in bundles.bundles],
    }


def _platform(bundles: BundleSet, item: Bundle) -> JsonObject:
    config = item.manifest.config
    content = parse_object(
        bundles.read(config.digest, config.size, CONFIG_BYTES_MAX), "configuration", CONFIG_BYTES_MAX
    )
    return {
        "platform": item.platform,
        "manifest": str(item.descriptor.digest),
        "manifest_bytes": item.descriptor.size,
        "bytes": plan_bytes(item.manifest.blobs),
        "layers": [_layer(layer) for layer in item.manifest.layers],
        "modelpack": content,
        "runtime": _runtime(item.runtime),
    }


def _layer(layer: Descriptor) -> JsonObject:
    return {
        "path": layer.path,
        "role": layer.role,
        "media_type": layer.media_type,
        "digest": str(layer.digest),
        "bytes": layer.size,
    }


def _runtime(runtime: Runtime) -> JsonObject:
    golden = runtime.golden
    return {
        "members": [{"entry": "", "steps": [], "batching": None, **member.to_json()} for member in runtime.members],
        "golden": None if golden is None else {"path": golden.path, "rtol": golden.rtol, "atol": golden.atol},
        "probation_ms": runtime.probation.window_ms,
        "failure_ratio_max": runtime.probation.failure_ratio_max,
        "nonfinite_ratio_max": runtime.probation.nonfinite_ratio_max,
        "latency_ratio_max": runtime.probation.latency_ratio_max,
        "drift_max": runtime.probation.drift_max,
        "sampling_ratio": runtime.sampling_ratio,
        "load_peak_bytes": runtime.load_peak_bytes,
        "allow_pickle": runtime.allow_pickle,
        "config": runtime.config,
        "bindings": [binding.to_json() for binding in runtime.bindings],
    }


def render(facts: JsonObject) -> list[str]:
    """What `inspect` gave, as lines for people."""
    lines = [
        f"{facts['model']}:{facts['version']}   {size_text(facts['bytes'])} in all",
        f"  index            {facts['index']}",
        f"  release counter  {facts['release_counter']}",
        f"  hardware         {', '.join(facts['hardware_ids']) or 'any of the platform'}",
    ]
    for item in facts["platforms"]:
        lines += ["", f"{item['platform']}   {item['manifest']}"]
        rows: list[tuple[str, ...]] = [("layer", "role", "size", "digest")]
        rows += [
            (layer["path"], layer["role"], size_text(layer["bytes"]), layer["digest"][7:19]) for layer in item["layers"]
        ]
        lines += table(rows)
    runtime = facts["platforms"][0]["runtime"]
    lines.append("")
    for member in runtime["members"]:
        what = member["entry"] or ", ".join(step["member"] for step in member["steps"])
        lines.append(f"member {member['name']} ({member['engine']}, {what})")
        if member["batching"] is not None:
            lines.append(f"  batched up to {member['batching']['rows_max']} rows, {member['batching']['wait_us']} us")
        for side in ("inputs", "outputs"):
            lines += [f"  {side[:-1]:6} {_tensor(tensor)}" for tensor in member[side]]
    for binding in runtime["bindings"]:
        topics = f"{binding['input_topic']} -> {binding['output_topic']}"
        lines.append(f"binding {binding['name']}: {topics} ({binding['form']}, asks {binding['member']})")
    golden = runtime["golden"]
    tolerance = f"rtol {golden['rtol']:g}, atol {golden['atol']:g}" if golden else "none"
    lines.append(f"golden vectors: {tolerance}")
    lines.append(f"probation {runtime['probation_ms']} ms, sampling ratio {runtime['sampling_ratio']:g}")
    return lines


def _tensor(tensor: JsonObject) -> str:
    shape = ", ".join("?" if dim < 0 else str(dim) for dim in tensor["shape"])
    return f"{tensor['name']}: {tensor['datatype']} [{shape}]"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as aligned columns; the first row is the head."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def size_text(count: float) -> str:
    """A size for people, in binary units."""
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"
