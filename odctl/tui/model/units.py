"""Figures for people. Inside, everything is seconds, bytes and tokens; here is the edge."""

from __future__ import annotations

_BINARY = ("B", "K", "M", "G", "T", "P")


def bytes_text(count: float) -> str:
    """`512B`, `1.5G`, `16G` (powers of 1024): at most five characters."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_BINARY) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0 or value >= 99.5:
        return f"{value:.0f}{_BINARY[unit]}"
    return f"{value:.1f}{_BINARY[unit]}"


def rate_text(bytes_per_s: float) -> str:
    return f"{bytes_text(bytes_per_s)}/s"


def percent_text(fraction: float) -> str:
    """`  5%`, ` 71%`, `100%`: always four characters."""
    return f"{min(999, round(fraction * 100)):3d}%"


def seconds_text(seconds: float) -> str:
    """A short span of time: `85 µs`, `12.5 ms`, `1.20 s`, `42 s`, `3 m 10 s`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest} s"


def age_text(seconds: float) -> str:
    """How long ago, or for how long: `4s`, `12m`, `3h`, `12d`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def count_text(count: float) -> str:
    """`950`, `41.2k`, `3.1M` (powers of 1000)."""
    if count < 999.5:
        return f"{count:.0f}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 99.5 else f"{value:.1f}{unit}"
    return f"{count / 1e3:.1f}k"


def tokens_per_s_text(rate: float) -> str:
    """`0.0`, `7.3`, `41`, `1.2k`: a rate, without its unit."""
    return f"{rate:.1f}" if rate < 99.5 else count_text(rate)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
