"""An agent's memory on disk: events in order, and named values of the supervisor. SQLite in WAL mode.

A commit survives `kill -9` of the agent; one that fences something (a state value, a durable event) also
survives a power cut. Used from one thread: every call is quick and blocks it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import FleetError
from agent.wire.agent import Event

SCHEMA_VERSION = 1
KEEP_EVENTS = 100_000
PRUNE_INTERVAL = 500
"""Events between two prunings: the table holds at most `KEEP_EVENTS + PRUNE_INTERVAL` rows."""
FOLLOW_BATCH = 256
BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE event (
    event_id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_s REAL NOT NULL,
    kind TEXT NOT NULL,
    deployment TEXT NOT NULL,
    generation INTEGER NOT NULL,
    plan_hash TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""


class Journal:
    """Append-only events and a key-value table in one file.

    Raises FleetError E901 where the file cannot be opened, is damaged, or was written by a newer release.
    """

    def __init__(
        self, path: Path, *, host: str, clock: Callable[[], float] = time.time, keep_events: int = KEEP_EVENTS
    ) -> None:
        self._host = host
        self._clock = clock
        self._keep_events = keep_events
        self._appended = 0
        self._is_durable: bool | None = None
        self._followers: set[asyncio.Event] = set()
        try:
            self._db = _open(path)
        except (sqlite3.Error, OSError) as error:
            raise FleetError(
                "E901",
                f"journal {path} cannot be opened: {error}",
                hint="move the file away to start with an empty journal",
                host=host,
            ) from error

    def close(self) -> None:
        self._db.close()

    # --- events -------------------------------------------------------------------------------------

    def append(
        self,
        kind: str,
        *,
        deployment: str = "",
        generation: int = 0,
        plan_hash: str = "",
        body: msgspec.Struct | Mapping[str, Any] | None = None,
        is_durable: bool = False,
    ) -> Event:
        """Write one event and wake the followers. `is_durable` waits for the disk."""
        at_s = self._clock()
        text = msgspec.json.encode({} if body is None else body).decode()
        self._set_durability(is_durable)
        cursor = self._db.execute(
            "INSERT INTO event (at_s, kind, deployment, generation, plan_hash, body) VALUES (?, ?, ?, ?, ?, ?)",
            (at_s, kind, deployment, generation, plan_hash, text),
        )
        event_id = cursor.lastrowid
        assert event_id is not None
        self._appended += 1
        if self._appended % PRUNE_INTERVAL == 0:
            self._db.execute("DELETE FROM event WHERE event_id <= ?", (event_id - self._keep_events,))
        for follower in self._followers:
            follower.set()
        return self._event((event_id, at_s, kind, deployment, generation, plan_hash, text))

    def read(self, after: int, limit: int) -> list[Event]:
        """At most `limit` events with ids greater than `after`, oldest first."""
        rows = self._db.execute("SELECT * FROM event WHERE event_id > ? ORDER BY event_id LIMIT ?", (after, limit))
        return [self._event(row) for row in rows]

    def read_last(self, limit: int) -> list[Event]:
        """The newest `limit` events, oldest first."""
        rows = self._db.execute("SELECT * FROM event ORDER BY event_id DESC LIMIT ?", (limit,)).fetchall()
        return [self._event(row) for row in reversed(rows)]

    def read_kinds(self, kinds: Sequence[str], limit: int, *, deployment: str = "") -> list[Event]:
        """The newest `limit` events of these kinds (of one deployment, if it is named), oldest first."""
        marks = ", ".join("?" * len(kinds))
        rows = self._db.execute(
            f"SELECT * FROM event WHERE kind IN ({marks}) AND ? IN ('', deployment) "  # noqa: S608 - marks alone
            "ORDER BY event_id DESC LIMIT ?",
            (*kinds, deployment, limit),
        ).fetchall()
        return [self._event(row) for row in reversed(rows)]

    @property
    def last_id(self) -> int:
        """Id of the newest event; 0 before the first."""
        (last_id,) = self._db.execute("SELECT coalesce(max(event_id), 0) FROM event").fetchone()
        return int(last_id)

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Every event with an id greater than `after`: those on disk, then each as it is appended."""
        changed = asyncio.Event()
        self._followers.add(changed)
        try:
            while True:
                changed.clear()
                events = self.read(after, FOLLOW_BATCH)
                for event in events:
                    yield event
                    after = event.event_id
                if not events:
                    await changed.wait()
        finally:
            self._followers.discard(changed)

    # --- state --------------------------------------------------------------------------------------

    def put_state(self, key: str, value: bytes) -> None:
        """Returns when the value is on disk: fences are built on it."""
        self._set_durability(True)
        self._db.execute(
            "INSERT INTO state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def get_state(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def list_state(self, prefix: str = "") -> dict[str, bytes]:
        """Values whose keys begin with `prefix`, by key, in key order."""
        rows = self._db.execute(
            "SELECT key, value FROM state WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return {key: bytes(value) for key, value in rows}

    def delete_state(self, key: str) -> None:
        self._set_durability(True)
        self._db.execute("DELETE FROM state WHERE key = ?", (key,))

    # ------------------------------------------------------------------------------------------------

    def _set_durability(self, is_durable: bool) -> None:
        if is_durable != self._is_durable:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            self._is_durable = is_durable

    def _event(self, row: tuple[int, float, str, str, int, str, str]) -> Event:
        event_id, at_s, kind, deployment, generation, plan_hash, body = row
        return Event(
            event_id=event_id,
            at_s=at_s,
            host=self._host,
            kind=kind,
            deployment=deployment,
            generation=generation,
            plan_hash=plan_hash,
            body=body,
        )


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # isolation_level None: each statement is its own transaction.
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        # The daemon's memory budget is small, and its working set a few pages.
        db.execute("PRAGMA cache_size = -512")
        db.execute("PRAGMA journal_size_limit = 4194304")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"written by a newer release (schema {version}, this one knows {SCHEMA_VERSION})"
            )
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db
