"""Log entries as lines, and the window of them that the log screen keeps: bounded, sorted by time, filtered."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from odctl.logs import FOLLOW, JOURNAL, LogEntry, LogFilter
from odctl.tui.model.text import Line, Span, Tone, fit, line, line_width, wrap

KEPT_ENTRIES = 5000
MIN_HOST_CELLS = 8
MIN_SOURCE_CELLS = 12
DROPPED_AT_ONCE = 500
"""The oldest go in bunches, so that the list is not moved with every entry."""
_LEVEL_TONES: dict[str, Tone] = {"debug": "dim", "info": "plain", "warning": "warn", "error": "fault"}
_LEVEL_GLYPHS = {"debug": "·", "info": " ", "warning": "▲", "error": "✗"}


class Columns(NamedTuple):
    """Cells of the columns before the text; 0 cells of host: every line is of the same one."""

    host: int
    source: int


ONE_HOST = Columns(host=0, source=MIN_SOURCE_CELLS)


def entry_spans(entry: LogEntry, columns: Columns) -> Line:
    """`14:02:31 ✗ gpu01 journal  RankLost chat g3  exit_code=-9`: times in UTC, as hosts are compared."""
    at = datetime.fromtimestamp(entry.at_s, UTC).strftime("%H:%M:%S")
    tone: Tone = "ok" if entry.is_good else _LEVEL_TONES[entry.level]
    glyph = "●" if entry.is_good else _LEVEL_GLYPHS[entry.level]
    host = f"{fit(entry.host, columns.host)} " if columns.host else ""
    source_tone: Tone = "key" if entry.source in (JOURNAL, FOLLOW) else "dim"
    detail = f"  {entry.detail}" if entry.detail else ""
    return line(
        Span(f" {at} ", "dim"),
        Span(f"{glyph} ", tone),
        host,
        Span(f"{fit(entry.source, columns.source)} ", source_tone),
        Span(entry.text, tone),
        Span(detail, "dim"),
    )


@lru_cache(maxsize=2 * KEPT_ENTRIES)
def entry_lines(entry: LogEntry, columns: Columns, *, width: int, is_wrapped: bool) -> tuple[Line, ...]:
    """One line; or as many as its text needs, the further ones below its text.

    Kept: with every new entry all of a window's are asked for again.
    """
    whole = entry_spans(entry, columns)
    if not is_wrapped or line_width(whole) <= width:
        return (whole,)
    # Text and detail are the last two; what stands before them is the head of the first line.
    head, body = whole[:-2], whole[-2:]
    indent = line_width(head)
    room = max(16, width - indent)
    lines: list[Line] = []
    for span in body:
        for text in wrap(span.text.strip(), room):
            if text:
                lines.append((Span(" " * indent), Span(text, span.tone)))
    if not lines:
        return (whole,)
    return ((*head, *lines[0][1:]), *lines[1:])


class LogWindow:
    """The last entries, sorted by time. `shown` are those that pass the filter; both stay bounded."""

    def __init__(self, *, kept: int = KEPT_ENTRIES) -> None:
        self._kept = kept
        self._entries: list[LogEntry] = []
        self._filter = LogFilter()
        self.shown: list[LogEntry] = []
        self.num_dropped = 0
        self._longest = Columns(host=MIN_HOST_CELLS, source=MIN_SOURCE_CELLS)
        self.revision = 0
        """Grows with every change of what is shown or kept."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def filter(self) -> LogFilter:
        return self._filter

    def choose(self, log_filter: LogFilter) -> None:
        """Show what passes another filter."""
        self._filter = log_filter
        self.revision += 1
        self.shown = [entry for entry in self._entries if log_filter.passes(entry)]

    def add(self, entries: Iterable[LogEntry]) -> None:
        """Take entries in; one that comes late goes to where its time belongs."""
        self.revision += 1
        for entry in entries:
            host, source = self._longest
            self._longest = Columns(host=max(host, len(entry.host)), source=max(source, len(entry.source)))
            _put(self._entries, entry)
            if self._filter.passes(entry):
                _put(self.shown, entry)
        surplus = len(self._entries) - self._kept
        if surplus > 0:
            surplus = min(len(self._entries), surplus + DROPPED_AT_ONCE)
            self.num_dropped += surplus
            del self._entries[:surplus]
            oldest_s = self._entries[0].at_s if self._entries else float("inf")
            while self.shown and self.shown[0].at_s < oldest_s:
                self.shown.pop(0)

    def columns(self, width: int) -> Columns:
        """As wide as the longest names, as far as the text keeps half of the screen."""
        room = width // 2 - 14
        source = min(self._longest.source, max(MIN_SOURCE_CELLS, room - MIN_HOST_CELLS))
        return Columns(host=min(self._longest.host, max(MIN_HOST_CELLS, room - source)), source=source)

    def clear(self) -> None:
        self._entries, self.shown, self.num_dropped = [], [], 0
        self.revision += 1


def summary_line(
    window: LogWindow, *, filter_text: str, error: str, is_following: bool, num_hosts: int, num_waiting: int
) -> Line:
    """`● following 3 hosts  1,204 lines  / level=warning 12`: what is shown, and what is not."""
    if error:
        return line(Span(f" ▲ filter: {error}", "warn"))
    state = Span(" ● following", "ok") if is_following else Span(" ❚❚ paused", "warn")
    hosts = f" {num_hosts} host{'' if num_hosts == 1 else 's'}"
    waiting = f", {num_waiting:,} more wait" if num_waiting else ""
    spans = [state, Span(hosts), Span(f"  {len(window):,} lines{waiting}", "dim")]
    if filter_text:
        spans += [Span(f"  / {filter_text}", "key"), Span(f"  {len(window.shown):,} shown", "dim")]
    if window.num_dropped:
        spans.append(Span(f"  {window.num_dropped:,} older ones left", "dim"))
    return tuple(spans)


def _put(entries: list[LogEntry], entry: LogEntry) -> None:
    if not entries or entries[-1].at_s <= entry.at_s:
        entries.append(entry)
    else:
        insort(entries, entry, key=lambda each: each.at_s)
