"""What `odctl probe` measured: devices, or the matrix of links; and measuring again."""

from __future__ import annotations

from typing import ClassVar, Literal

from textual import work
from textual.binding import Binding, BindingType
from textual.message import Message

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot
from odctl.tui.model.link_matrix import (
    MatrixRows,
    ProbedRows,
    link_page,
    links_of,
    probed_page,
    probes_summary,
)
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import plural
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable

View = Literal["devices", "latency", "rate"]
VIEWS: tuple[View, ...] = ("devices", "latency", "rate")


class ProbesScreen(TableScreen):
    mode = "probes"
    empty = "the inventory names no hosts: add [hosts.NAME] to it, or run `odctl init HOST…`"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "next_view", "Devices/links", id="probes.view"),
        Binding("c", "next_carrier", "Carrier", id="probes.carrier", show=False),
        Binding("p", "probe(False)", "Probe…", id="probes.probe"),
        Binding("P", "probe(True)", "Probe quickly, with small sizes…", id="probes.quick", show=False),
    ]

    class Progressed(Message):
        """One line of a probe, from the fleet's thread."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__()
        self.view: View = "devices"
        self.carrier = ""
        self.is_probing = False
        self._said: Line = ()

    def on_mount(self) -> None:
        # Every row of a host, and its row and column of the matrix, are marked together.
        self.table.mark_of = _host_of

    @property
    def marked(self) -> frozenset[str]:
        """Hosts that are marked."""
        return self.table.marks

    def mark_lines(self) -> list[Line]:
        return []  # the summary says it

    def trail(self) -> tuple[str, ...]:
        return ("Probes", {"devices": "Devices", "latency": "Latency", "rate": "Bandwidth"}[self.view])

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        if self.view == "devices":
            return ProbedRows(snapshot, marked=self.marked)
        return MatrixRows(snapshot, links_of(snapshot, self.carrier), self.view, marked=self.marked)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:  # noqa: ARG002 - short lines
        links = links_of(snapshot, self.carrier)
        lines = probes_summary(snapshot, links, self.view, marked=self.marked)
        return (*lines, self._said) if self._said else lines

    def detail(self, snapshot: FleetSnapshot, key: str, width: int) -> tuple[Line, ...]:
        if self.view == "devices":
            return probed_page(snapshot, key, width=width)
        return link_page(snapshot, links_of(snapshot, self.carrier), key)

    def on_fleet_table_chosen(self, event: FleetTable.Chosen) -> None:
        self.odctl.open_host(_host_of(event.key))

    def action_next_view(self) -> None:
        self.view = VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)]
        self.sort = None
        self.redraw()

    def action_next_carrier(self) -> None:
        if self.odctl.snapshot is None:
            return
        links = links_of(self.odctl.snapshot, self.carrier)
        if len(links.carriers) < 2:
            self.notify(f"links were measured by {links.carrier or 'no carrier'} alone")
            return
        self.carrier = links.carriers[(links.carriers.index(links.carrier) + 1) % len(links.carriers)]
        self.redraw()

    def action_probe(self, is_quick: bool) -> None:
        """Ask, then measure the marked hosts, or the one under the cursor."""
        if not self.odctl.may_change():
            return
        if self.is_probing:
            self.notify("a probe is under way: one at a time, or both measure each other")
            return
        hosts = sorted(self.table.chosen)
        if not hosts:
            return
        pairs = len(hosts) * (len(hosts) - 1) // 2
        how_long = "some seconds a host, and rougher figures" if is_quick else "up to a minute a host"
        what = f"Devices and {plural(pairs, 'link')}" if pairs else "Devices"
        lines = [
            ", ".join(hosts),
            f"{what} are measured again: {how_long}. They are busy meanwhile.",
            "A host that serves a deployment refuses, and says so.",
        ]
        title = f"Probe {plural(len(hosts), 'host')}{' quickly' if is_quick else ''}?"
        self.app.push_screen(
            ConfirmScreen(title=title, lines=lines, verb="Probe"),  # it makes hosts busy, and changes nothing
            lambda is_sure: self._begin(hosts, is_quick=is_quick) if is_sure else None,
        )

    def _begin(self, hosts: list[str], *, is_quick: bool) -> None:
        self.is_probing = True
        self._say(f"↻ measuring {', '.join(hosts[:6])} …", is_trouble=False)
        self._probe(hosts, is_quick=is_quick)

    @work(group="probe")
    async def _probe(self, hosts: list[str], *, is_quick: bool) -> None:
        try:
            outcome = await self.odctl.prober.probe(self.odctl.feed, hosts, self._take_progress, is_quick=is_quick)
        except FleetError as error:
            self._end(f"✗ {error}", is_trouble=True)
            return
        done = (
            f"{plural(len(outcome.fresh), 'host')} and {plural(outcome.num_links_measured, 'direction')} measured"
        )
        if outcome.troubles:
            self._end(f"▲ {done}; {outcome.troubles[0]}", is_trouble=True)
        else:
            self._end(f"● {done}; plans are made with these figures from now on", is_trouble=False)

    def _take_progress(self, text: str) -> None:
        """From the fleet's thread: posting a message is all that may be done there."""
        self.post_message(self.Progressed(text))

    def on_probes_screen_progressed(self, message: Progressed) -> None:
        if self.is_probing:
            self._say(f"↻ {message.text}", is_trouble=False)

    def _end(self, text: str, *, is_trouble: bool) -> None:
        self.is_probing = False
        self._say(text, is_trouble=is_trouble)
        if not self.is_current:
            self.notify(text, title="probe", severity="warning" if is_trouble else "information")

    def _say(self, text: str, *, is_trouble: bool) -> None:
        self._said = line(Span(f" {text}", "warn" if is_trouble else "heal"))
        if self.is_current:
            self.redraw()


def _host_of(key: str) -> str:
    return key.partition("/")[0]
