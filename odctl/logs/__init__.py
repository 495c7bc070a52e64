"""Journals and logs of many hosts as one: entries, a filter, reading and following."""

from __future__ import annotations

from odctl.logs.entry import FOLLOW, JOURNAL, LEVELS, LogEntry, entry_line
from odctl.logs.filter import LogFilter, parse_log_filter
from odctl.logs.follow import MAX_HOSTS, follow_logs, read_logs

__all__ = [
    "FOLLOW",
    "JOURNAL",
    "LEVELS",
    "MAX_HOSTS",
    "LogEntry",
    "LogFilter",
    "entry_line",
    "follow_logs",
    "parse_log_filter",
    "read_logs",
]
