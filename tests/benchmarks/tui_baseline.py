"""What `make bench-tui` prints beside the app: the same fleet on Textual's own DataTable."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import App, ComposeResult
from textual.widgets import DataTable, Static

from odctl.fleet import FleetSnapshot, HostView
from odctl.tui.app import SnapshotTaken
from odctl.tui.model.units import bytes_text
from tests.simulated_fleet import SimulatedFeed

CELLS: dict[str, Callable[[HostView], str]] = {
    "HOST": lambda host: host.name,
    "STATE": lambda host: host.state,
    "CPU": lambda host: f"{host.sample.cpu:.0%}" if host.sample else "—",
    "RAM": lambda host: bytes_text(host.sample.memory_used_bytes) if host.sample else "—",
    "GPU": lambda host: f"{host.digest.gpu:.0%}" if host.digest and host.digest.gpu is not None else "—",
    "VRAM": lambda host: bytes_text(host.digest.gpu_used_bytes or 0) if host.digest else "—",
    "TEMP": lambda host: f"{host.digest.temperature_c or 0:.0f}°" if host.digest else "—",
    "POWER": lambda host: f"{host.history.last.power_w or 0:.0f}W" if host.history.last else "—",
    "NET": lambda host: bytes_text(host.history.last.sent_bytes_per_s) if host.history.last else "—",
    "LOAD": lambda host: f"{host.sample.load_1m:.1f}" if host.sample else "—",
    "UP": lambda host: f"{host.sample.uptime_s / 86400:.0f}d" if host.sample else "—",
    "NOTE": lambda host: host.reason,
}
"""The baseline's columns: as many as ours show at this width, in the cheapest words that mean the same."""


class DataTableApp(App[None]):
    """A plain DataTable with a row a host, and `update_cell` for every cell whose text changed."""

    CSS = "DataTable { height: 1fr; } #detail { height: 1; }"
    BINDINGS = [("q", "quit", "Quit")]  # noqa: RUF012 - as Textual declares it

    def __init__(self, feed: SimulatedFeed) -> None:
        super().__init__()
        self._feed = feed
        self._texts: dict[tuple[str, str], str] = {}

    def compose(self) -> ComposeResult:
        yield DataTable[str](cursor_type="row")
        yield Static(id="detail", markup=False)

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for name in CELLS:
            table.add_column(name, key=name, width=10)
        self._feed.start(self._take, lambda _error: self.exit())
        table.focus()

    def _take(self, snapshot: FleetSnapshot) -> None:
        self.post_message(SnapshotTaken(snapshot))

    async def on_unmount(self) -> None:
        await self._feed.stop()

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        table = self.query_one(DataTable)
        for host in message.snapshot.hosts:
            texts = {name: read(host) for name, read in CELLS.items()}
            if (host.name, "HOST") not in self._texts:
                table.add_row(*texts.values(), key=host.name)
                self._texts |= {(host.name, name): text for name, text in texts.items()}
                continue
            for name, text in texts.items():
                if self._texts[host.name, name] != text:
                    self._texts[host.name, name] = text
                    table.update_cell(host.name, name, text)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        self.query_one("#detail", Static).update(f" ▸ {event.row_key.value}")
