"""Trace files: what `odctl bench` asks and records, and `odctl simulate` plays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agent.errors import FleetError
from agent.simulation.trace import TraceRequest, parse_trace, trace_text

MAX_BYTES = 512 * 1024 * 1024


def read_trace(path: str) -> tuple[TraceRequest, ...]:
    """The requests in a file by arrival. Raises FleetError E101 to E107, most at their line and column."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise FleetError("E101", f"{path}: {size} bytes are no trace: up to {MAX_BYTES} are read")
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise FleetError(
            "E101", f"{path}: {error.strerror or error}", hint="`odctl bench TARGET --record FILE` writes a trace"
        ) from error
    except UnicodeDecodeError as error:
        raise FleetError("E101", f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse_trace(text, file=path)


def write_trace(path: str, requests: Iterable[TraceRequest]) -> None:
    """Raises FleetError E101 when the file cannot be written."""
    try:
        Path(path).write_text(trace_text(requests), encoding="utf-8")
    except OSError as error:
        raise FleetError("E101", f"{path}: {error.strerror or error}") from error
