"""What a deployment would bring over the network, before it is one: pure sums over what the registry knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject

_WHOLE_FILES: Final = ("linux/arm/v7", "linux/arm/v6")
"""Platforms for which numpy is not published, so that their devices fetch whole files."""


@dataclass(frozen=True, slots=True)
class Content:
    """Blobs of a bundle for one platform, its manifest among them: lengths by digest."""

    blobs: Mapping[Digest, int]


@dataclass(frozen=True, slots=True)
class Start:
    """Devices that hold the same thing.

    Attributes:
        label: For people, for example `digits:3`.
        platform: Of the devices.
        devices: How many.
        held: What they hold; none when that is not known, or nothing.
        new: What they are to get; none when there is no bundle for them.
    """

    label: str
    platform: str
    devices: int
    held: Content | None
    new: Content | None


def forecast(starts: Sequence[Start], deltas: Sequence[Delta], link_kbps: float) -> JsonObject:
    """Bytes and seconds, for each start and in all.

    Args:
        starts: Groups of devices.
        deltas: Deltas that the registry has.
        link_kbps: Speed of each device's link, kilobits (1,000 bits) a second; above 0.

    Returns:
        `{rows: [{base, platform, devices, bytes, bytes_full, seconds, seconds_full, bytes_in_all, by}],
        devices, bytes, bytes_full, link_kbps}`; `by` is `delta` or `full`, or `nothing` where no bundle fits.
    """
    rows: list[JsonObject] = []
    for start in starts:
        full = small = 0
        is_delta = False
        if start.new is not None:
            held = {} if start.held is None else start.held.blobs
            for digest, size in start.new.blobs.items():
                if digest in held:
                    continue
                usable = [delta.bytes for delta in deltas if delta.new == digest and delta.base in held]
                least = min([size, *usable]) if start.platform not in _WHOLE_FILES else size
                full += size
                small += least
                is_delta = is_delta or least < size
        rows.append(
            {
                "base": start.label,
                "platform": start.platform,
                "devices": start.devices,
                "by": "nothing" if start.new is None else "delta" if is_delta else "full",
                "bytes": small,
                "bytes_full": full,
                "bytes_in_all": small * start.devices,
                "seconds": round(small * 8 / (link_kbps * 1000), 1),
                "seconds_full": round(full * 8 / (link_kbps * 1000), 1),
            }
        )
    return {
        "rows": rows,
        "devices": sum(start.devices for start in starts),
        "bytes": sum(row["bytes"] * row["devices"] for row in rows),
        "bytes_full": sum(row["bytes_full"] * row["devices"] for row in rows),
        "link_kbps": link_kbps,
    }
