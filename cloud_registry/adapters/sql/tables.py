"""The schema as the code uses it. `migrations/` builds it; a test holds the two together.

Names are keys, because names never change. JSON is kept as text, so that both databases give back the same bytes.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

METADATA: Final = MetaData()
# SQLite numbers rows by itself only when the key's type is exactly INTEGER.
_SERIAL: Final = BigInteger().with_variant(Integer, "sqlite")

models = Table(
    "models",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
)

# Outlives its model, so that a number never means two things.
model_numbers = Table(
    "model_numbers",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("last", BigInteger, nullable=False),
)

versions = Table(
    "versions",
    METADATA,
    Column("model", Text, ForeignKey("models.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("format", Text, nullable=False),
    Column("entry", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("lineage", Text, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("outputs", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
)

version_files = Table(
    "version_files",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("path", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    ForeignKeyConstraint(["model", "number"], ["versions.model", "versions.number"]),
)

# Tags and properties of models (number 0) and versions.
labels = Table(
    "labels",
    METADATA,
    Column("model", Text, ForeignKey("models.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index("labels_by_key", "kind", "key"),
)

aliases = Table(
    "aliases",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    ForeignKeyConstraint(["model", "number"], ["versions.model", "versions.number"]),
)

alias_changes = Table(
    "alias_changes",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    Column("model", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("number", BigInteger),
    Column("changed_ms", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    Index("alias_changes_by_alias", "model", "alias", "id"),
)

bundles = Table(
    "bundles",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("platform", Text, primary_key=True),
    Column("manifest", Text, nullable=False),
    Column("manifest_bytes", BigInteger, nullable=False),
    Column("release_counter", BigInteger, nullable=False),
    Column("hardware_ids", Text, nullable=False),
    Column("repository", Text, nullable=False),
    Column("index_digest", Text, nullable=False),
    ForeignKeyConstraint(["model", "number"], ["versions.model", "versions.number"]),
)

# Deltas to files of a version. What they start from is a file of another version of the model.
deltas = Table(
    "deltas",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", Text, primary_key=True),
    Column("base", Text, nullable=False),
    Column("base_bytes", BigInteger, nullable=False),
    Column("new", Text, nullable=False),
    Column("new_bytes", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("peak_bytes", BigInteger, nullable=False),
    Column("format", Text, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("index_digest", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    ForeignKeyConstraint(["model", "number"], ["versions.model", "versions.number"]),
    Index("deltas_by_index", "index_digest"),
)

devices = Table(
    "devices",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("platform", Text, nullable=False),
    Column("hardware_id", Text, nullable=False),
    Column("enrolled_ms", BigInteger, nullable=False),
    Column("identity", Text, nullable=False, unique=True),
    Column("certificate_until_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
    Column("report", Text),
    Column("report_boot", Text),
    Column("report_number", BigInteger),
    Column("report_received_ms", BigInteger),
    Column("refusals", BigInteger, nullable=False),
    Column("refusal_code", Text),
    Column("refusal_detail", Text, nullable=False),
    Column("refusal_ms", BigInteger),
)

# Public keys that may sign for a device: the one it enrolled or renewed with, and after a renewal with a new key both,
# until the first request that the new one signs.
device_keys = Table(
    "device_keys",
    METADATA,
    Column("device", Text, ForeignKey("devices.name"), primary_key=True),
    Column("keyid", Text, primary_key=True),
    Column("pem", Text, nullable=False),
    Column("is_next", Boolean, nullable=False),
    Index("device_keys_by_keyid", "keyid"),
)

# What happened to the identity of a device. Outlives it.
device_changes = Table(
    "device_changes",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    Column("device", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    Index("device_changes_by_device", "device", "id"),
)

# Every bundle a device was ever assigned: what it says it runs opens nothing else to it.
device_bundles = Table(
    "device_bundles",
    METADATA,
    Column("device", Text, ForeignKey("devices.name"), primary_key=True),
    Column("manifest", Text, primary_key=True),
    Column("repository", Text, nullable=False),
    Column("index_digest", Text, nullable=False),
)

device_tags = Table(
    "device_tags",
    METADATA,
    Column("device", Text, ForeignKey("devices.name"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# What each device reports: the bundles that are live, that it would roll back to, and that it confirmed last.
device_modules = Table(
    "device_modules",
    METADATA,
    Column("device", Text, ForeignKey("devices.name"), primary_key=True),
    Column("module", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("manifest", Text),
    Column("fallback", Text),
    Column("confirmed", Text),
    Index("device_modules_by_version", "model", "number"),
)

# Outlives its device: a device that enrols again may send old records again.
device_boots = Table(
    "device_boots",
    METADATA,
    Column("device", Text, primary_key=True),
    Column("boot", Text, primary_key=True),
    Column("watermark", BigInteger, nullable=False),
)

enrolment_tokens = Table(
    "enrolment_tokens",
    METADATA,
    Column("token_hash", Text, primary_key=True),
    Column("device", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("keyid", Text),
    Column("identity", Text),
    Index("enrolment_tokens_by_device", "device"),
)

deployments = Table(
    "deployments",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("age", BigInteger, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("module", Text, nullable=False),
    Column("condition", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("priority", BigInteger, nullable=False),
    Column("is_cancelled", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Index("deployments_by_version", "model", "number"),
)

deployment_devices = Table(
    "deployment_devices",
    METADATA,
    Column("deployment", Text, ForeignKey("deployments.id"), primary_key=True),
    Column("device", Text, ForeignKey("devices.name"), primary_key=True),
    Column("module", Text, nullable=False),
    Column("is_current", Boolean, nullable=False),
    Column("manifest", Text),
    Column("standing", Text, nullable=False),
    Column("phase", Text),
    Column("outcome", Text),
    Column("error_code", Text),
    Column("error_detail", Text, nullable=False),
    Column("golden", Text),
    Column("reported_ms", BigInteger),
    Index("deployment_devices_by_device", "device"),
    # A module of a device never runs two deployments at once, whatever the code above believes.
    Index(
        "deployment_devices_current",
        "device",
        "module",
        unique=True,
        sqlite_where=text("is_current"),
        postgresql_where=text("is_current"),
    ),
)

deployment_changes = Table(
    "deployment_changes",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    Column("deployment", Text, ForeignKey("deployments.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    Index("deployment_changes_by_deployment", "deployment", "id"),
)

operator_tokens = Table(
    "operator_tokens",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("token_hash", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
)

documents = Table(
    "documents",
    METADATA,
    Column("repository", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

lake_files = Table(
    "lake_files",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    Column("path", Text, nullable=False, unique=True),
    Column("rows", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("received_ms_min", BigInteger, nullable=False),
    Column("received_ms_max", BigInteger, nullable=False),
)
