"""What outlives the emulator: every document of the hub and its telemetry, in one SQLite file. One thread."""

import json
import os
import sqlite3
from pathlib import Path

from device_sim.iothub.hub import Hub
from device_sim.iothub.limits import TELEMETRY_KEPT_MAX
from device_sim.iothub.messages import Event
from device_sim.iothub.stored import restore, to_store
from edge_contract.hub import HubAddress

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL,
                                      PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (ordinal INTEGER PRIMARY KEY, head TEXT NOT NULL, body BLOB NOT NULL);
"""


class Store:
    """Keeps a hub in a file. `flush` makes everything durable that happened; acknowledge only after it."""

    def __init__(self, path: Path, hub: Hub) -> None:
        """Open or make the file, and take what it holds into the hub."""
        self._hub = hub
        # It holds keys: nobody else reads it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)
        self._load()

    def _load(self) -> None:
        rows = self._database.execute("SELECT kind, name, body FROM documents ORDER BY kind, name").fetchall()
        for kind, name, body in rows:
            if kind == "policies":
                self._hub.policies = json.loads(body)
            else:
                restore(self._hub, kind, name, json.loads(body))
        for ordinal, head, body in self._database.execute("SELECT ordinal, head, body FROM events ORDER BY ordinal"):
            fields = json.loads(head)
            source = HubAddress(fields.pop("device"), fields.pop("module"))
            self._hub.restore_event(Event(ordinal=ordinal, source=source, body=body, **fields))
        text = json.dumps(self._hub.policies)
        self._database.execute("INSERT OR REPLACE INTO documents VALUES ('policies', '', ?)", (text,))

    def flush(self) -> None:
        """Write what changed since the last time, in one transaction."""
        changed, events = sorted(self._hub.changed), self._hub.new_events
        if not changed and not events:
            return
        self._hub.changed, self._hub.new_events = set(), []
        self._database.execute("BEGIN IMMEDIATE")
        for kind, name in changed:
            document = to_store(self._hub, kind, name)
            if document is None:
                self._database.execute("DELETE FROM documents WHERE kind = ? AND name = ?", (kind, name))
            else:
                row = (kind, name, json.dumps(document))
                self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", row)
        for event in events:
            self._database.execute(
                "INSERT OR REPLACE INTO events VALUES (?, ?, ?)", (event.ordinal, _head(event), event.body)
            )
        if events:
            oldest = events[-1].ordinal - TELEMETRY_KEPT_MAX
            self._database.execute("DELETE FROM events WHERE ordinal <= ?", (oldest,))
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Write the rest and close."""
        self.flush()
        self._database.close()


def _head(event: Event) -> str:
    return json.dumps(
        {
            "device": event.source.device,
            "module": event.source.module,
            "partition": event.partition,
            "sequence": event.sequence,
            "offset": event.offset,
            "enqueued_ms": event.enqueued_ms,
            "properties": dict(event.properties),
            "system": dict(event.system),
            "authentication": event.authentication,
        }
    )
