"""Telemetry readings as text: a value, or in words why there is none."""

from __future__ import annotations

from collections.abc import Callable

from agent.facts.sample import Lost, NotAvailable, Ok, Reading, Stale
from odctl.tui.model.bars import bar
from odctl.tui.model.text import Span, Tone
from odctl.tui.model.units import age_text, bytes_text, percent_text

NONE = "—"
_KNOWN = (Ok, Stale)
"""A tuple made once: a union would be made at every call, and there are a million of them on a big fleet."""


def reading_span(reading: Reading, format_value: Callable[[float], str]) -> Span:
    """The value; dimmed with its age when stale; a dash when there is none (`reading_reason` says why)."""
    match reading:
        case Ok(value=value):
            return Span(format_value(value))
        case Stale(value=value, age_s=age_s):
            return Span(f"{format_value(value)} {age_text(age_s)}", "dim")
        case Lost():
            return Span("✗ lost", "fault")
        case NotAvailable():
            return Span(NONE, "dim")


def reading_reason(reading: Reading) -> str:
    """Why there is no fresh value; empty when there is one."""
    match reading:
        case Ok():
            return ""
        case Stale(age_s=age_s):
            return f"{age_text(age_s)} old"
        case Lost(reason=reason) | NotAvailable(reason=reason):
            return reason


def reading_value(reading: Reading) -> float | None:
    """The last known value, fresh or stale."""
    return reading.value if isinstance(reading, _KNOWN) else None


def load_span(reading: Reading, width: int) -> tuple[Span, ...]:
    """`██▌·· 52%` in `width` cells (bar, space, percentage)."""
    value = reading_value(reading)
    if value is None:
        return (reading_span(reading, percent_text),)
    tone: Tone = "dim" if isinstance(reading, Stale) else "bar"
    return (Span(bar(value, max(1, width - 5)), tone), Span(f" {percent_text(value)}"))


def memory_text(used: Reading, total: Reading) -> Span:
    """`4.0G/16G`; a dash when either is unknown."""
    used_bytes, total_bytes = reading_value(used), reading_value(total)
    if used_bytes is None or total_bytes is None:
        return reading_span(used if used_bytes is None else total, bytes_text)
    tone: Tone = "dim" if isinstance(used, Stale) else "plain"
    return Span(f"{bytes_text(used_bytes)}/{bytes_text(total_bytes)}", tone)
