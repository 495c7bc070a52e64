"""Which host holds which model, whole or in part."""

from __future__ import annotations

from collections.abc import Sequence

from agent.wire.agent import ModelHolding
from odctl.tui.model.bars import bar
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import bytes_text, count_text, percent_text

COLUMNS = (
    Column(id="model", title="MODEL", width=18, grow_to=36),
    Column(id="host", title="HOST", width=12, grow_to=20),
    Column(id="family", title="FAMILY", width=8, priority=3),
    Column(id="parameters", title="PARAMS", width=7, priority=2, is_right=True, sorts_down=True),
    Column(id="size", title="SIZE", width=6, priority=1, is_right=True, sorts_down=True),
    Column(id="held", title="HELD", width=13, priority=1, sorts_down=True),
    Column(id="digest", title="DIGEST", width=12, priority=4),
    Column(id="path", title="PATH", width=16, priority=5, grow_to=60),
)


def model_key(held: ModelHolding) -> str:
    """Of its row: a host may hold one model in two places."""
    return f"{held.host}:{held.path}:{held.digest}"


class ModelRows:
    """Holdings, by model and then by host."""

    columns = COLUMNS

    def __init__(self, holdings: Sequence[ModelHolding]) -> None:
        self._holdings = sorted(holdings, key=lambda held: (held.name, held.host, held.path))
        self.keys: Sequence[str] = tuple(model_key(held) for held in self._holdings)

    def values(self, column: str) -> Sequence[Value]:
        return [_value(held, column) for held in self._holdings]

    def text(self, row: int) -> str:
        held = self._holdings[row]
        return f"{held.name} {held.host} {held.family} {held.path} {held.trouble}"

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - models have none
        return {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - bars are of a fixed width
        held = self._holdings[row]
        match column:
            case "model":
                return line(Span(held.name, "bold"))
            case "size":
                return line(bytes_text(held.size_bytes))
            case "parameters":
                return line(count_text(held.num_parameters))
            case "held":
                if held.trouble:
                    return line(Span("✗ unusable", "fault"))
                fraction = held.held_bytes / held.size_bytes if held.size_bytes else 0.0
                text = "complete" if held.is_complete else percent_text(fraction).strip()
                return line(Span(bar(fraction, 4), "bar"), f" {text}")
            case "path":
                return line(Span(held.trouble, "fault") if held.trouble else Span(held.path, "dim"))
            case _:
                return line(str(_value(held, column)))


def _value(held: ModelHolding, column: str) -> Value:
    match column:
        case "model":
            return held.name
        case "host":
            return held.host
        case "family":
            return held.family
        case "parameters":
            return float(held.num_parameters)
        case "size":
            return float(held.size_bytes)
        case "held":
            return held.held_bytes / held.size_bytes * 100 if held.size_bytes else 0.0
        case "digest":
            return held.digest[:12]
        case _:
            return held.path
