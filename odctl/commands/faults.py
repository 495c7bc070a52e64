"""`odctl faults`: what went wrong, who saw it, with its evidence; and `--timeline`: what was done about it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from agent.facts.fault import Fault
    from odctl.fleet.story_reading import Reading
    from odctl.timeline import Lane, Story

STRIP_CELLS = 60
"""Of each lane, as it is printed."""
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@click.command("faults")
@click.option("--open", "only_open", is_flag=True, help="Only those that are not healed.")
@click.option("--timeline", is_flag=True, help="Lanes over time, and every step with its evidence.")
@click.option("--since", default="", metavar="SPAN", help="With --timeline: the last 90s, 30m, 1h or 7d alone.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, only_open: bool, timeline: bool, since: str, as_json: bool) -> None:
    """List faults that agents observed, open ones first, with their evidence.

    With --timeline: a lane for each faulty thing, and what was seen, decided and done about it, step by step, as
    the agents' journals tell it. Times are UTC by this machine's clock.
    """
    if timeline:
        run_command(lambda: fault_timeline(inventory_path, only_open=only_open, since=since), as_json=as_json)
    else:
        run_command(lambda: faults(inventory_path, only_open=only_open, since=since), as_json=as_json)


def faults(inventory_path: str, *, only_open: bool, since: str = "") -> Result:
    """Raises E111 for `--since` without `--timeline`."""
    import msgspec

    from agent.errors import FleetError
    from agent.wire.agent import FaultReport
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet, warn_unreachable

    if since:
        raise FleetError("E111", "`--since` needs `--timeline`", hint="add --timeline, or leave out --since")

    async def look(fleet: Fleet, _inventory: Inventory) -> Result:
        answers = await fleet.get_all("/v1/faults", FaultReport)
        missing = {host: answer for host, answer in answers.items() if isinstance(answer, FleetError)}
        warn_unreachable(missing)
        found = [
            fault
            for answer in answers.values()
            if not isinstance(answer, FleetError)
            for fault in answer.faults
            if not only_open or fault.healed_at_s is None
        ]
        found.sort(key=lambda fault: (fault.healed_at_s is not None, -fault.observed_at_s, fault.fault_id))
        lines = [line for fault in found for line in _lines(fault)] or ["no faults"]
        return Result(
            kind="faults",
            data={"faults": msgspec.to_builtins(found)},
            prose="\n".join(lines),
            exit_code=ExitCode.UNREACHABLE if missing else ExitCode.OK,
        )

    return visit_fleet(inventory_path, look)


def fault_timeline(inventory_path: str, *, only_open: bool, since: str) -> Result:
    """Raises E111 for a span that is none, E2xx when no host answers."""
    import msgspec

    from odctl.fleet import Fleet
    from odctl.fleet.clock import SystemClock
    from odctl.fleet.story_reading import read_timeline
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet, warn_unreachable

    span_s = parse_span(since) if since else None

    async def look(fleet: Fleet, _inventory: Inventory) -> Result:
        reading = await read_timeline(fleet, SystemClock())
        warn_unreachable(reading.missing)
        if reading.missing and len(reading.missing) == len(fleet.hosts):
            raise next(iter(reading.missing.values()))
        start_s = None if span_s is None else reading.now_s - span_s
        lanes = select_lanes(reading.timeline.lanes, since_s=start_s, only_open=only_open)
        return Result(
            kind="fault-timeline",
            data={
                "now_s": reading.now_s,
                "since_s": start_s,
                "lanes": msgspec.to_builtins(lanes),
                "clocks_ahead_s": reading.timeline.clocks,
                "unread": reading.timeline.unread,
                "not_understood": reading.timeline.num_not_understood,
                "missing": sorted(reading.missing),
            },
            prose="\n".join(timeline_lines(lanes, reading, since_s=start_s)),
            exit_code=ExitCode.UNREACHABLE if reading.missing else ExitCode.OK,
        )

    return visit_fleet(inventory_path, look)


def parse_span(text: str) -> float:
    """Seconds of `90s`, `30m`, `1h`, `7d`. Raises FleetError E111."""
    from agent.errors import FleetError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise FleetError("E111", f"--since `{text}` is no span of time", hint="write 90s, 30m, 1h or 7d")
    return float(found[1]) * _UNITS_S[found[2]]


def select_lanes(lanes: tuple[Lane, ...], *, since_s: float | None, only_open: bool) -> tuple[Lane, ...]:
    """Lanes with the stories that are open or ended since then; without those that have none left. Pure."""
    import msgspec

    out = []
    for lane in lanes:
        stories = tuple(
            story
            for story in lane.stories
            if (not only_open or story.is_open) and (since_s is None or (story.ended_s or since_s) >= since_s)
        )
        if stories:
            out.append(msgspec.structs.replace(lane, stories=stories))
    return tuple(out)


def timeline_lines(lanes: tuple[Lane, ...], reading: Reading, *, since_s: float | None) -> list[str]:
    """The lanes' strips over one axis, then each story, the newest first. Pure."""
    from odctl.timeline.strip import conditions
    from odctl.timeline.text import GLYPHS, legend, state_text, story_text, when_text

    notes = [f"not read: the journal of {host}: {why}" for host, why in reading.timeline.unread.items()]
    notes += [
        f"the clock of {host} is {ahead_s:+.1f} s off, and put right here"
        for host, ahead_s in reading.timeline.clocks.items()
        if abs(ahead_s) > 1
    ]
    if reading.timeline.num_not_understood:
        notes.append(f"{reading.timeline.num_not_understood} events could not be understood: another release's?")
    if not lanes:
        return ["no faults", *notes]
    begins = [story.began_s for lane in lanes for story in lane.stories if story.began_s is not None]
    start_s = since_s if since_s is not None else min(begins, default=reading.now_s - _UNITS_S["h"])
    span_s = max(1.0, reading.now_s - start_s)
    width = max(len(lane.key.label) for lane in lanes)
    lines = [f"{'':<{width}}  {when_text(start_s)} to {when_text(reading.now_s)}"]
    for lane in lanes:
        found = conditions(lane, start_s=start_s, span_s=span_s, num_cells=STRIP_CELLS, now_s=reading.now_s)
        strip = "".join(" " if each is None else GLYPHS[each] for each in found)
        lines.append(f"{lane.key.label:<{width}}  {strip}  {state_text(lane.newest)}")
    lines += [f"{'':<{width}}  {legend()}", *notes]
    for story in _newest_first(lanes):
        lines += ["", *story_text(story)]
    return lines


def _newest_first(lanes: tuple[Lane, ...]) -> list[Story]:
    from odctl.timeline.story import began_order

    return sorted((story for lane in lanes for story in lane.stories), key=began_order, reverse=True)


def _lines(fault: Fault) -> list[str]:
    glyph = "✓" if fault.healed_at_s is not None else "▲" if fault.severity == "warning" else "✗"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(fault.observed_at_s))
    healed = (
        f", healed after {fault.healed_at_s - fault.observed_at_s:.1f} s" if fault.healed_at_s is not None else ""
    )
    evidence = ", ".join(f"{key} {value}" for key, value in fault.evidence.items())
    where = f"{fault.deployment} generation {fault.generation}" if fault.deployment else fault.host
    lines = [f"{glyph} {when}  {fault.kind:<12} {where}: {fault.message}{healed}"]
    lines.append(f"    seen by {fault.observed_by}; {evidence}")
    if fault.way_out and fault.healed_at_s is None:
        lines.append(f"    way out: {fault.way_out}")
    return lines
