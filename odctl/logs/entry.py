"""Journal events and lines of logs as entries of one kind. No I/O."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Literal

import msgspec

from agent.wire.agent import Event
from agent.wire.host import LogLines

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
JOURNAL = "journal"
FOLLOW = "odctl"
"""Source of what the following itself has to say: a host that went, or came back."""

LEVEL_WORDS: dict[str, Level] = {
    "debug": "debug",
    "trace": "debug",
    "info": "info",
    "notice": "info",
    "warning": "warning",
    "warn": "warning",
    "error": "error",
    "err": "error",
    "critical": "error",
    "fatal": "error",
    "exception": "error",
}
_ERROR_KINDS = ("Lost", "Failed", "Hung", "Broke", "Broken", "Fault")
_WARNING_KINDS = ("RolledBack", "Refused", "Aborted", "Signalled", "Silent")
_GOOD_KINDS = ("Healed", "Committed")


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a log, or one event of a journal. `at_s`: seconds since the epoch, by its host's clock."""

    at_s: float
    host: str
    source: str
    """`journal`, or the log's name: `agent`, a rank's or a gateway's process name."""
    level: Level
    text: str
    detail: str = ""
    """Fields beside the text, as `key=value`."""
    is_good: bool = False
    """An event that ends a trouble."""

    @property
    def searched(self) -> str:
        return f"{self.host} {self.source} {self.level} {self.text} {self.detail}"


def event_entry(event: Event) -> LogEntry:
    """A journal's event: its kind, what it is about, and its body as fields."""
    level: Level = "info"
    if any(word in event.kind for word in _ERROR_KINDS):
        level = "error"
    elif any(word in event.kind for word in _WARNING_KINDS):
        level = "warning"
    is_good = any(word in event.kind for word in _GOOD_KINDS)
    about = f" {event.deployment} g{event.generation}" if event.deployment else ""
    return LogEntry(
        at_s=event.at_s,
        host=event.host,
        source=JOURNAL,
        level="info" if is_good else level,
        text=f"{event.kind}{about}",
        detail=_fields_text(event.body),
        is_good=is_good,
    )


def line_entries(host: str, lines: LogLines) -> list[LogEntry]:
    """Lines of a log. One without a time of its own has that of the line before: it belongs to it."""
    entries: list[LogEntry] = []
    if lines.skipped_bytes:
        entries.append(
            LogEntry(
                at_s=lines.at_s,
                host=host,
                source=lines.name,
                level="warning",
                text=f"{lines.skipped_bytes} bytes skipped: it is written faster than it can be followed",
            )
        )
    level: Level = "info"
    first = next((found.at_s for text in lines.lines if (found := _json_entry(host, lines.name, text))), None)
    # What stands before the first line with a time is not newer than it.
    at_s = lines.at_s if first is None else first
    for text in lines.lines:
        if not text.strip():
            continue
        entry = _json_entry(host, lines.name, text)
        if entry is None:
            entry = LogEntry(at_s=at_s, host=host, source=lines.name, level=level, text=text.rstrip())
        at_s, level = entry.at_s, entry.level
        entries.append(entry)
    return entries


def _json_entry(host: str, name: str, text: str) -> LogEntry | None:
    """A line that is one JSON object with a time; None for any other."""
    try:
        found = json.loads(text) if text.startswith("{") else None
    except json.JSONDecodeError:
        return None
    if not isinstance(found, dict) or (stamp := _stamp(found.pop("at", ""))) is None:
        return None
    word = str(found.pop("level", "info")).lower()
    said = str(found.pop("event", ""))
    found.pop("logger", None)
    return LogEntry(
        at_s=stamp,
        host=host,
        source=name,
        level=LEVEL_WORDS.get(word, "info"),
        text=said,
        detail=" ".join(f"{key}={_value_text(value)}" for key, value in found.items()),
    )


def _stamp(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _fields_text(body: str) -> str:
    """`key=value` of a flat JSON object; any other text as it is."""
    try:
        found = json.loads(body) if body else {}
    except json.JSONDecodeError:
        return body
    if not isinstance(found, dict):
        return body
    return " ".join(f"{key}={_value_text(value)}" for key, value in found.items())


def _value_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def entry_line(entry: LogEntry) -> str:
    """`2026-11-29 14:02:31Z gpu01 agent warning rank hangs  child=chat-3-r0s0t0`, for a plain terminal."""
    at = datetime.fromtimestamp(entry.at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    detail = f"  {entry.detail}" if entry.detail else ""
    return f"{at} {entry.host} {entry.source} {entry.level} {entry.text}{detail}"
