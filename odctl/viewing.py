"""The fleet for verbs that print it: once, or again and again until Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

import msgspec

from odctl.fleet import Fleet, FleetSnapshot, watch_fleet
from odctl.fleet.clock import SystemClock
from odctl.following import ctrl_c, until_pressed
from odctl.inventory import Inventory
from odctl.live_text import LiveText, is_terminal, terminal_width
from odctl.result import ExitCode, Result, json_line
from odctl.session import visit_fleet

SETTLE_S = 15.0
"""So long a host may take to answer before it is shown as one that has not."""
PAST_S = 5.0
"""Of each host's past: enough that its rates are there with the first answer."""


class Following(msgspec.Struct, frozen=True, kw_only=True):
    """How results are shown again and again."""

    every_s: float
    as_json: bool


def view_fleet(
    inventory_path: str,
    show: Callable[[Inventory, FleetSnapshot, int | None], Result],
    *,
    following: Following | None,
    hosts: Callable[[Inventory], Iterable[str]] | None = None,
    is_wide: bool = False,
) -> Result:
    """What `show` makes of the fleet's snapshot and the cells of a line (None: as many as it takes).

    Raises what reading the inventory raises. Hosts that do not answer are part of the snapshot.
    """

    async def look(fleet: Fleet, inventory: Inventory) -> Result:
        clock = SystemClock()
        snapshots = watch_fleet(fleet, clock, history_s=PAST_S, settles_s=SETTLE_S)

        async def results() -> AsyncGenerator[Result, None]:
            last_s = float("-inf")
            every_s = following.every_s if following is not None else 0.0
            async for snapshot in snapshots:
                if snapshot.taken_at_s - last_s >= every_s * 0.9:
                    last_s = snapshot.taken_at_s
                    yield show(inventory, snapshot, None if is_wide else terminal_width(sys.stdout))

        async with aclosing(snapshots):
            if following is not None:
                return await follow(results(), following)
            async with aclosing(results()) as found:
                return await anext(found)

    return visit_fleet(inventory_path, look, hosts=hosts)


async def follow(results: AsyncGenerator[Result, None], following: Following) -> Result:
    """Show each result as it comes, until Ctrl-C or until nobody reads. The last one's exit code is the verb's."""
    last = ExitCode.OK
    live = LiveText(sys.stdout, in_place=is_terminal(sys.stdout) and not following.as_json)

    async def show_all() -> None:
        nonlocal last
        async with aclosing(results) as found:
            async for result in found:
                last = result.exit_code
                if following.as_json:
                    sys.stdout.write(json_line(result))
                    sys.stdout.flush()
                else:
                    live.show(result.prose)

    kind = "followed"
    try:
        with ctrl_c() as presses:
            await until_pressed(show_all(), presses)
    except KeyboardInterrupt:
        return Result(kind=kind, data=None, prose="", exit_code=last, is_printed=True)
    except BrokenPipeError:
        # `| head` has what it wanted. What Python would flush at its end must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Result(kind=kind, data=None, prose="", exit_code=last, is_printed=True)


def exit_code_for(snapshot: FleetSnapshot) -> ExitCode:
    """4 when a host does not answer, 5 when only a deployment's controller does not."""
    if any(host.state in {"lost", "unreachable", "connecting"} for host in snapshot.hosts):
        return ExitCode.UNREACHABLE
    return ExitCode.PARTIAL if any(view.error is not None for view in snapshot.deployments) else ExitCode.OK
