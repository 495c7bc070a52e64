"""Quantities for people: one way to write seconds, bytes, rates and layers wherever a plan is explained. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from agent.planner.interval import Interval
from agent.planner.plan import Range


def bytes_words(num_bytes: float) -> str:
    """`24.0 GB`, `512 MB`, `3 kB`: decimal units, as vendors and networks count."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.1f} {unit}"
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.0f} {unit}"
    return f"{num_bytes:.0f} B"


def seconds_words(seconds: float) -> str:
    """`1.30 s`, `41.2 ms`, `180 us`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} us"


def rate_words(tokens_per_s: float) -> str:
    """`397 tok/s`."""
    return f"{tokens_per_s:.3g} tok/s" if tokens_per_s < 1000 else f"{tokens_per_s:.0f} tok/s"


def seconds_interval_words(seconds: Interval) -> str:
    """`10.2 ms (8.9..12.1)`: all in the unit of the expected."""
    expected = seconds_words(seconds.expected)
    if seconds.low == seconds.high:
        return expected
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[expected.split()[1]]
    return f"{expected} ({_figure(seconds.low * scale)}..{_figure(seconds.high * scale)})"


def rate_interval_words(tokens_per_s: Interval) -> str:
    """`397 tok/s (310..508)`."""
    expected = rate_words(tokens_per_s.expected)
    if tokens_per_s.low == tokens_per_s.high:
        return expected
    return f"{expected} ({_figure(tokens_per_s.low)}..{_figure(tokens_per_s.high)})"


def joules_words(joules: float) -> str:
    """`12.4 J`, `340 mJ`."""
    return f"{joules:.3g} J" if joules >= 1 else f"{joules * 1e3:.3g} mJ"


def joules_interval_words(joules: Interval) -> str:
    """`12.4 J (7.9..20)`: all in the unit of the expected."""
    expected = joules_words(joules.expected)
    if joules.low == joules.high:
        return expected
    scale = 1.0 if expected.endswith(" J") else 1e3
    return f"{expected} ({_figure(joules.low * scale)}..{_figure(joules.high * scale)})"


def bytes_interval_words(num_bytes: Interval) -> str:
    """`24.0 GB (23.4..24.5)`: all in the unit of the expected, and as exact as it is."""
    expected = bytes_words(num_bytes.expected)
    if num_bytes.low == num_bytes.high:
        return expected
    figure, unit = expected.split()
    scale = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}[unit]
    digits = 1 if "." in figure else 0
    return f"{expected} ({num_bytes.low / scale:.{digits}f}..{num_bytes.high / scale:.{digits}f})"


def figure_words(value: float, unit: str) -> str:
    """A compared figure in the unit of its metric, short enough for a column."""
    match unit:
        case "s":
            return seconds_words(value)
        case "bytes":
            return bytes_words(value)
        case "J":
            return joules_words(value)
        case "tokens/s":
            return rate_words(value).removesuffix(" tok/s") + "/s"
        case _:
            return f"{value:.0%}" if unit == "fraction" else f"{value:.0f}"


def _figure(value: float) -> str:
    """Two digits are all that an interval's end is worth; three where whole numbers have them."""
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"


def layers_words(layers: Range) -> str:
    """`layers 0-9`: both ends belong, as people count; a single one is `layer 4`."""
    first, end = layers
    return f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"


def moment_words(at_s: float) -> str:
    """`2026-11-29 08:20 UTC`: what a file says, and what stays true when it is read later."""
    return f"{datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%d %H:%M} UTC"


def age_words(seconds: float) -> str:
    """`12 s ago`, `3 min ago`, `5 h ago`, `9 days ago`."""
    for unit, size, limit in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{max(0.0, seconds) // size:.0f} {unit} ago"
    return f"{seconds // 86400:.0f} days ago"


def list_words(names: list[str] | tuple[str, ...], *, most: int = 4) -> str:
    """`a, b and 12 more`."""
    if len(names) > most:
        return ", ".join(names[: most - 1]) + f" and {len(names) - most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def runs(numbers: Iterable[int]) -> list[range]:
    """Ascending numbers as ranges without a gap."""
    found: list[range] = []
    for number in numbers:
        if found and number == found[-1].stop:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def runs_words(numbers: Iterable[int]) -> list[str]:
    """`0-4`, `9`."""
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs(numbers)]
