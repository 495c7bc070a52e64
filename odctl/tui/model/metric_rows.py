"""What deployments and hosts do, as two tables of rates: what `odctl metrics` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.marks import HOST_MARKS, deployment_mark
from odctl.tui.model.readings import NONE
from odctl.tui.model.records import Record, deployment_record, host_record
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import bytes_text, count_text, percent_text, seconds_text, tokens_per_s_text

DEPLOYMENT_COLUMNS = (
    Column(id="name", title="DEPLOYMENT", width=14, grow_to=28),
    Column(id="state", title="STATE", width=11),
    Column(id="tokens_per_s", title="TOK/S", width=7, priority=1, is_right=True, sorts_down=True),
    Column(id="predicted_tokens_per_s", title="PREDICTED", width=9, priority=8, is_right=True, sorts_down=True),
    Column(id="ttft_s_p50", title="TTFT p50", width=9, priority=2, is_right=True, sorts_down=True),
    Column(id="ttft_s_p95", title="p95", width=8, priority=6, is_right=True, sorts_down=True),
    Column(id="time_per_token_s_p50", title="TOKEN p50", width=9, priority=3, is_right=True, sorts_down=True),
    Column(id="time_per_token_s_p95", title="p95", width=8, priority=7, is_right=True, sorts_down=True),
    Column(id="running", title="RUN", width=7, priority=4, is_right=True, sorts_down=True),
    Column(id="queued", title="QUEUE", width=5, priority=4, is_right=True, sorts_down=True),
    Column(id="kv", title="KV TOKENS", width=12, priority=5, is_right=True, sorts_down=True),
    Column(id="finished", title="DONE", width=6, priority=9, is_right=True, sorts_down=True),
    Column(id="failed", title="FAILED", width=6, priority=9, is_right=True, sorts_down=True),
)
HOST_COLUMNS = (
    Column(id="name", title="HOST", width=12, grow_to=24),
    Column(id="state", title="STATE", width=13),
    Column(id="cpu_fraction", title="CPU", width=5, priority=1, is_right=True, sorts_down=True),
    Column(id="memory", title="RAM", width=5, priority=2, is_right=True, sorts_down=True),
    Column(id="gpu_fraction", title="GPU", width=5, priority=3, is_right=True, sorts_down=True),
    Column(id="vram", title="VRAM", width=5, priority=3, is_right=True, sorts_down=True),
    Column(id="received_bytes_per_s", title="NET ↓/s", width=7, priority=4, is_right=True, sorts_down=True),
    Column(id="sent_bytes_per_s", title="NET ↑/s", width=7, priority=4, is_right=True, sorts_down=True),
    Column(id="read_bytes_per_s", title="READ/s", width=7, priority=6, is_right=True, sorts_down=True),
    Column(id="written_bytes_per_s", title="WRITE/s", width=7, priority=6, is_right=True, sorts_down=True),
    Column(id="power_w", title="POWER", width=6, priority=5, is_right=True, sorts_down=True),
    Column(id="num_ranks", title="RANKS", width=5, priority=7, is_right=True, sorts_down=True),
)

_WORDS: dict[str, Callable[[float], str]] = {
    "tokens_per_s": tokens_per_s_text,
    "predicted_tokens_per_s": tokens_per_s_text,
    "ttft_s_p50": seconds_text,
    "ttft_s_p95": seconds_text,
    "time_per_token_s_p50": seconds_text,
    "time_per_token_s_p95": seconds_text,
    "cpu_fraction": lambda value: percent_text(value).strip(),
    "memory": lambda value: percent_text(value).strip(),
    "gpu_fraction": lambda value: percent_text(value).strip(),
    "vram": lambda value: percent_text(value).strip(),
    "received_bytes_per_s": bytes_text,
    "sent_bytes_per_s": bytes_text,
    "read_bytes_per_s": bytes_text,
    "written_bytes_per_s": bytes_text,
    "power_w": lambda value: f"{value:.0f}W",
}


class MetricRows:
    """Records as rows: a figure that is unknown is a dash, and its record says why."""

    def __init__(
        self,
        columns: tuple[Column, ...],
        keys: Sequence[str],
        records: Sequence[Record],
        states: Sequence[Span],
        banners: Sequence[str],
    ) -> None:
        self.columns = columns
        self.keys = keys
        self.records = records
        self._states = states
        self._banners = banners

    def values(self, column: str) -> Sequence[Value]:
        return [self._value(row, column) for row in range(len(self.keys))]

    def text(self, row: int) -> str:
        return f"{self.keys[row]} {self._states[row].text} {self._banners[row]}"

    def labels(self, row: int) -> dict[str, str]:
        labels = self.records[row].get("labels", {})
        return {str(key): str(value) for key, value in labels.items()}

    def banner(self, row: int) -> Banner | None:
        """Whoever never said anything has no figures: the reason takes their place."""
        return (self.columns[2].id, line(Span(self._banners[row], "warn"))) if self._banners[row] else None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - no cell draws a bar
        record = self.records[row]
        match column:
            case "name":
                return line(Span(self.keys[row], "bold"))
            case "state":
                return line(self._states[row])
            case "running" if record["running"] is not None:
                return line(f"{record['running']}/{record['slots']}")
            case "kv" if record["kv_tokens_held"] is not None:
                total = record["kv_tokens_total"]
                return line(
                    f"{count_text(record['kv_tokens_held'])}/{count_text(total) if total is not None else NONE}"
                )
        value = self._value(row, column)
        if value is None or isinstance(value, str):
            return line(Span(value or NONE, "dim"))
        return line(_WORDS.get(column, count_text)(value))

    def _value(self, row: int, column: str) -> Value:
        record = self.records[row]
        match column:
            case "name":
                return self.keys[row]
            case "state":
                return self._states[row].text
            case "kv":
                return _number(record["kv_tokens_held"])
            case "memory":
                return _share(record["memory_used_bytes"], record["memory_total_bytes"])
            case "vram":
                return _share(record["gpu_memory_used_bytes"], record["gpu_memory_total_bytes"])
        return _number(record[column])


def deployment_metrics(snapshot: FleetSnapshot) -> MetricRows:
    """Every deployment: tokens a second, times, queue and KV cache, beside what was predicted."""
    views = snapshot.deployments
    return MetricRows(
        DEPLOYMENT_COLUMNS,
        [view.name for view in views],
        [deployment_record(view) for view in views],
        [deployment_mark(view).span for view in views],
        [view.error.message if view.status is None and view.error is not None else "" for view in views],
    )


def host_metrics(snapshot: FleetSnapshot) -> MetricRows:
    """Every host: load, memory, and what flows through it a second."""
    hosts = snapshot.hosts
    return MetricRows(
        HOST_COLUMNS,
        [host.name for host in hosts],
        [host_record(host) for host in hosts],
        [HOST_MARKS[host.state].span for host in hosts],
        [host.reason if host.sample is None else "" for host in hosts],
    )


def _number(value: float | None) -> Value:
    return None if value is None else float(value)


def _share(used: float | None, total: float | None) -> Value:
    return used / total if used is not None and total else None
