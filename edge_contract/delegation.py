"""How the targets of the image repository delegate: by model name first, everything else to hash bins. Pure.

TUF lets one targets file name delegated roles or succinct hash bins (TAP 15), never both. So there are always two
levels, with one shape for every registry:

```
targets ── model.digits     digits/*/*, terminating, keys and threshold of its own
        ├─ model.…
        └─ catalogue        */*/*, whatever no model role claims
             └─ bins-0 … bins-f, or bins-00 … bins-ff when there is much
```

A model's role lists its bundles itself, and gets bins of its own (`bins.digits-0` …) when the list grows long.
"""

from typing import Final

from edge_contract.errors import ContractError
from edge_contract.names import model_name

CATALOGUE: Final = "catalogue"
CATALOGUE_PATHS: Final = ("*/*/*",)
MODELS_DELEGATED_MAX: Final = 1_000  # every device reads the list of them
_MODEL_ROLE: Final = "model."
_BINS: Final = "bins"


def model_role(model: str) -> str:
    """The role that signs a model's bundles.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    return _MODEL_ROLE + model_name(model)


def model_of(role: str) -> str | None:
    """The model that a role signs for, or none when it is no model's role."""
    if not role.startswith(_MODEL_ROLE):
        return None
    try:
        return model_name(role.removeprefix(_MODEL_ROLE))
    except ContractError:
        return None


def paths_of(role: str) -> tuple[str, ...]:
    """The path patterns that the top-level targets give to a role; empty for a role they never delegate to."""
    model = model_of(role)
    if model is not None:
        return (f"{model}/*/*",)
    return CATALOGUE_PATHS if role == CATALOGUE else ()


def bin_prefix(role: str) -> str:
    """How the names of the bins begin that a role delegates to: `bins` for the catalogue, `bins.<model>` for a model.

    Raises:
        ContractError: `cloud.name-invalid` for a role that has no bins.
    """
    model = model_of(role)
    if model is not None:
        return f"{_BINS}.{model}"
    if role == CATALOGUE:
        return _BINS
    raise ContractError("cloud.name-invalid", f"the role {role[:80]!r} has no bins")


def delegator_of(role: str) -> str | None:
    """The role that delegates to a bin, or none when the name is no bin's."""
    prefix, dash, suffix = role.rpartition("-")
    if not dash or not suffix or not all(digit in "0123456789abcdef" for digit in suffix):
        return None
    if prefix == _BINS:
        return CATALOGUE
    kind, dot, model = prefix.partition(".")
    if kind != _BINS or not dot or model_of(_MODEL_ROLE + model) is None:
        return None
    return _MODEL_ROLE + model
