"""Journal entries as lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from agent.wire.agent import Event
from odctl.tui.model.text import Line, Span, Tone, line

_TONES: tuple[tuple[str, Tone], ...] = (
    ("Lost", "fault"),
    ("Failed", "fault"),
    ("Hung", "fault"),
    ("Broke", "fault"),
    ("RolledBack", "warn"),
    ("Refused", "warn"),
    ("Healed", "ok"),
    ("Committed", "ok"),
)


def event_line(event: Event) -> Line:
    """`14:02:31Z RankLost chat g3  rank_id=r0s1t0 exit_code=-9`: time in UTC, as journals are compared."""
    at = datetime.fromtimestamp(event.at_s, UTC).strftime("%H:%M:%SZ")
    tone: Tone = next((tone for ending, tone in _TONES if ending in event.kind), "bold")
    about = f" {event.deployment} g{event.generation}" if event.deployment else ""
    return line(Span(f" {at} ", "dim"), Span(event.kind, tone), about, Span(f"  {_body_text(event.body)}", "dim"))


def _body_text(body: str) -> str:
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
