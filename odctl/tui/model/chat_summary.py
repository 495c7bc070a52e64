"""Whom one talks to, above the conversation. Pure."""

from __future__ import annotations

from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.marks import deployment_mark
from odctl.tui.model.text import Line, Span, line, wrap


def chat_summary(snapshot: FleetSnapshot | None, name: str, *, width: int) -> tuple[Line, ...]:
    """State and address; why it is not well, with the way out; that it is gone, when it is."""
    if not name:
        return (line(Span(" nothing is deployed to talk to: 2 Plans previews and applies one", "dim")),)
    view = snapshot.deployment(name) if snapshot else None
    if view is None:
        return (
            line(" ", Span(name, "bold"), Span(" ▲ is not deployed any more; what was said stays here", "warn")),
        )
    status = view.status
    served = f"  {status.gateway_host} {status.listen}" if status else ""
    lines = [line(" ", Span(name, "bold"), " ", deployment_mark(view).span, Span(served, "dim"))]
    reason = view.error.message if view.error is not None else status.reason if status else ""
    way_out = view.error.hint if view.error is not None else status.way_out if status else ""
    lines += [line(Span(f" ▲ {text}", "warn")) for text in wrap(reason, width - 4) if text][:2]
    lines += [line(Span(f"   → {text}", "dim")) for text in wrap(way_out, width - 6) if text][:1]
    return tuple(lines)
