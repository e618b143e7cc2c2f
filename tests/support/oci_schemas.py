"""The OCI image specification's published JSON schemas, as judges of what we write."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from tests.support.require import require_shared_schema

_FILES = (
    "content-descriptor.json",
    "defs-descriptor.json",
    "defs.json",
    "image-index-schema.json",
    "image-layout-schema.json",
    "image-manifest-schema.json",
)


def oci_validator(name: str) -> Draft4Validator:
    """A validator for one schema, such as ``image-index-schema.json``; skips where the schemas are absent.

    The schemas nest ``id``s that change what a relative reference means, yet every reference in them is a bare file
    name: so a reference is looked up by the last part of whatever it resolved to.
    """
    known = {file: json.loads(require_shared_schema(f"schemas/oci/{file}").read_text()) for file in _FILES}

    def retrieve(uri: str) -> Resource[Any]:
        return Resource.from_contents(known[uri.rsplit("/", 1)[-1]], default_specification=DRAFT4)

    registry: Registry[Any] = Registry(retrieve=retrieve)  # type: ignore[call-arg]
    return Draft4Validator(known[name], registry=registry)
