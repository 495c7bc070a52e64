"""Requests in flight of one deployment as a table, and one of them in words."""

from __future__ import annotations

from collections.abc import Sequence

from agent.errors import FleetError
from agent.wire.gateway import InFlightState, RequestReport, RequestView
from odctl.tui.model.bars import bar
from odctl.tui.model.marks import Mark
from odctl.tui.model.readings import NONE
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import age_text, plural, seconds_text, tokens_per_s_text

MARKS: dict[InFlightState, Mark] = {
    "running": Mark("●", "running", "ok"),
    "queued": Mark("○", "queued", "dim"),
    "waiting": Mark("↻", "waiting", "heal"),
}
PREFILL = Mark("▒", "prompt", "heal")
"""It runs, and its prompt is still being computed."""
COLUMNS = (
    Column(id="request", title="REQUEST", width=10, grow_to=28),
    Column(id="state", title="STATE", width=9),
    Column(id="client", title="CLIENT", width=10, priority=1, grow_to=24),
    Column(id="replica", title="REPL", width=4, priority=6, is_right=True, sorts_down=True),
    Column(id="prompt", title="PROMPT", width=6, priority=3, is_right=True, sorts_down=True),
    Column(id="answer", title="ANSWER", width=9, priority=2, is_right=True, sorts_down=True),
    Column(id="share", title="DONE", width=8, priority=7),
    Column(id="age", title="AGE", width=5, is_right=True, sorts_down=True),
    Column(id="ttft", title="TTFT", width=7, priority=4, is_right=True, sorts_down=True),
    Column(id="speed", title="TOK/S", width=5, priority=1, is_right=True, sorts_down=True),
    Column(id="priority", title="PRIO", width=4, priority=8, is_right=True),
)


class RequestRows:
    """In the gateway's order: those that run, then those that wait."""

    columns = COLUMNS

    def __init__(self, requests: Sequence[RequestView]) -> None:
        self._requests = requests
        self.keys: Sequence[str] = tuple(view.request_id for view in requests)

    def values(self, column: str) -> Sequence[Value]:
        return [_value(view, column) for view in self._requests]

    def text(self, row: int) -> str:
        view = self._requests[row]
        return f"{view.request_id} {view.client} {request_mark(view).word}"

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - requests have none
        return {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:
        view = self._requests[row]
        match column:
            case "request":
                return line(Span(short_id(view.request_id), "bold"))
            case "state":
                return line(request_mark(view).span)
            case "answer":
                return line(_answer_text(view))
            case "share":
                return line(Span(bar(_share(view), width), "bar")) if view.max_tokens else line(Span(NONE, "dim"))
        value = _value(view, column)
        if value is None:
            return line(Span(NONE, "dim"))
        return line(value if isinstance(value, str) else _figure(column, value))


def request_mark(view: RequestView) -> Mark:
    is_prefill = view.state == "running" and view.computed_tokens < view.prompt_tokens
    return PREFILL if is_prefill else MARKS[view.state]


def short_id(request_id: str) -> str:
    """Without `req_`; the rest is cut where its column ends, and a beginning is enough to name it."""
    return request_id.removeprefix("req_")


def request_words(view: RequestView) -> tuple[str, ...]:
    """What a dialog says of the request that it would end."""
    limit = "" if view.max_tokens is None else f" of at most {view.max_tokens:,}"
    asked = "an embedding" if view.embeds else f"{plural(view.generated_tokens, 'token')}{limit} so far"
    where = "no replica" if view.replica is None else f"replica {view.replica}"
    return (
        f"{view.request_id}",
        f"{request_mark(view).word} on {where}, for {view.client or 'an unnamed client'}",
        f"prompt of {plural(view.prompt_tokens, 'token')}, {asked}, {age_text(view.age_s)} old",
        "",
        "Its client gets an error that says so. Slot and KV cache are",
        "free at once. It cannot be taken up again.",
    )


def _value(view: RequestView, column: str) -> Value:
    match column:
        case "request":
            return view.request_id
        case "state":
            return request_mark(view).word
        case "client":
            return view.client
        case "replica":
            return None if view.replica is None else float(view.replica)
        case "prompt":
            return float(view.prompt_tokens)
        case "answer":
            return float(view.generated_tokens)
        case "share":
            return _share(view) * 100 if view.max_tokens else None
        case "age":
            return view.age_s
        case "ttft":
            return view.ttft_s
        case "speed":
            return view.tokens_per_s
        case _:
            return float(view.priority)


def _figure(column: str, value: float) -> str:
    match column:
        case "age":
            return age_text(value)
        case "ttft":
            return seconds_text(value)
        case "speed":
            return tokens_per_s_text(value)
        case _:
            return f"{value:.0f}"


def _share(view: RequestView) -> float:
    return view.generated_tokens / view.max_tokens if view.max_tokens else 0.0


def _answer_text(view: RequestView) -> str:
    if view.embeds:
        return "embedding"
    return f"{view.generated_tokens}" + (f"/{view.max_tokens}" if view.max_tokens else "")


def requests_title(
    report: RequestReport | None, trouble: FleetError | None, *, is_reachable: bool
) -> tuple[Line, ...]:
    """How many there are by state, or why that is not known."""
    title = Span(" REQUESTS ", "title")
    if not is_reachable:
        return (line(title, Span("▲ not known: its controller does not answer", "warn")),)
    if trouble is not None:
        old = "; these are of before" if report is not None and report.requests else ""
        return (line(title, Span(f"▲ not known: {trouble}{old}", "warn")),)
    if report is None:
        return (line(title, Span("asking …", "dim")),)
    marks = [request_mark(view) for view in report.requests]
    spans: list[Span | str] = [title]
    for mark in (*MARKS.values(), PREFILL):
        if count := marks.count(mark):
            spans.append(Span(f"{mark.glyph} {count} {mark.word}  ", mark.tone))
    spans.append(
        Span("tab moves between page and table", "dim") if report.requests else Span("none in flight", "dim")
    )
    return (line(*spans),)
