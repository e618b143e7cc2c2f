"""The ModelPack configuration of a bundle (CNCF ModelPack specification, config schema)."""

from collections.abc import Sequence
from datetime import UTC, datetime

from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject, dump
from packager.signature import FORMAT_BY_ENGINE, ModelFacts
from packager.spec import Spec

_SUFFIXES = (("", 1), ("K", 10**3), ("M", 10**6), ("B", 10**9), ("T", 10**12))


def config_bytes(spec: Spec, facts: Sequence[ModelFacts], layers: Sequence[Digest], created_s: int | None) -> bytes:
    """The reproducible bytes of the configuration blob.

    Args:
        spec: Description with name and version.
        facts: What was read of each member, in the order of `spec.members`.
        layers: Digests of the layers in manifest order; uncompressed, so a layer's digest is its content's.
        created_s: Seconds since 1970 to state as the time of creation, or none to state none.
    """
    about = spec.about
    descriptor: JsonObject = {"name": spec.name, "version": str(spec.version)}
    optional = {
        "description": about.description,
        "family": about.family,
        "vendor": about.vendor,
        "revision": about.lineage.get("git_commit", ""),
        "authors": list(about.authors),
        "licenses": list(about.licenses),
        "datasetsURL": [about.lineage["dataset"]] if "dataset" in about.lineage else [],
    }
    descriptor |= {key: value for key, value in optional.items() if value}
    if created_s is not None:
        descriptor["createdAt"] = datetime.fromtimestamp(created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    formats = sorted({FORMAT_BY_ENGINE[member.engine] for member in spec.members})
    precision = sorted({item for fact in facts for item in fact.precision})
    config = {
        "architecture": about.architecture,
        "format": ",".join(formats),
        "paramSize": param_size(sum(fact.parameters for fact in facts)),
        "precision": ",".join(precision),
    }
    return dump(
        {
            "descriptor": descriptor,
            "config": {key: value for key, value in config.items() if value},
            "modelfs": {"type": "layers", "diffIds": [str(digest) for digest in layers]},
        }
    )


def param_size(count: int) -> str:
    """A number of parameters as ModelPack writes it (`1.2M`); empty for none."""
    if count == 0:
        return ""
    suffix, unit = next((item for item in reversed(_SUFFIXES) if count >= item[1]), _SUFFIXES[0])
    if not suffix:
        suffix, unit = _SUFFIXES[1]
    scaled = round(count / unit, 1)
    return f"{scaled:g}{suffix}" if scaled else ""
