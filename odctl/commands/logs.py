"""`odctl logs`: journals and logs of many hosts, merged by time; with `--follow`, as they grow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from odctl.result import JSON_SCHEMA, ExitCode, Result, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from odctl.fleet import Fleet
    from odctl.logs import LogEntry, LogFilter


@click.command("logs")
@click.argument("selector", required=False, default="all")
@click.option("-f", "--follow", is_flag=True, help="Go on as they grow, until interrupted.")
@click.option(
    "--name", default="", help="Only logs of this name (a glob): agent, journal, or a rank's or gateway's."
)
@click.option(
    "--grep",
    default="",
    metavar="FILTER",
    help="Words that must all hold: a regular expression, !word, host=, level=, name=.",
)
@click.option(
    "--tail", default=200, show_default=True, type=click.IntRange(0, 10_000), help="Last lines of each log."
)
@click.option("--json", "as_json", is_flag=True, help="With --follow, one object a line.")
@click.pass_obj
def command(inventory_path: str, /, selector: str, follow: bool, as_json: bool, **options: Any) -> None:
    """Show the journal and every log of the hosts that SELECTOR names, oldest first.

    SELECTOR is `all`, names, globs, `group:NAME` or `label=value`, joined by commas. Times are UTC, each by its
    own host's clock.
    """
    run_command(
        lambda: logs(inventory_path, selector, follow=follow, as_json=as_json, **options),
        as_json=as_json and not follow,
    )


def logs(
    inventory_path: str, selector: str, *, follow: bool, name: str, grep: str, tail: int, as_json: bool
) -> Result:
    """Raises E105 for a filter that means nothing, E108 for an unknown host, E2xx when no host answers."""
    import msgspec

    from odctl.inventory import Inventory, load_inventory, select
    from odctl.logs import entry_line, parse_log_filter, read_logs
    from odctl.session import visit_fleet, warn_unreachable

    chosen = parse_log_filter(grep)
    hosts = [host.name for host in select(load_inventory(inventory_path), selector)]
    hosts = [host for host in hosts if chosen.wants_host(host)]

    async def perform(fleet: Fleet, _inventory: Inventory) -> Result:
        if follow:
            return await _follow(fleet, hosts, chosen, name=name, tail=tail, as_json=as_json)
        found, missing = await read_logs(fleet, hosts, name=name, tail=tail)
        if missing and len(missing) == len(hosts):
            raise missing[min(missing)]
        warn_unreachable(missing)
        entries = [entry for entry in found if chosen.passes(entry)]
        data = {
            "entries": msgspec.to_builtins(entries),
            "missing": {host: msgspec.to_builtins(error.detail) for host, error in missing.items()},
        }
        return Result(
            kind="logs",
            data=data,
            prose="\n".join(entry_line(entry) for entry in entries),
            exit_code=ExitCode.PARTIAL if missing else ExitCode.OK,
        )

    return visit_fleet(inventory_path, perform, hosts=lambda _: hosts)


async def _follow(
    fleet: Fleet, hosts: Sequence[str], chosen: LogFilter, *, name: str, tail: int, as_json: bool
) -> Result:
    """Until Ctrl-C, or until nobody reads. What a host had before comes when the host has answered."""
    from odctl.fleet.clock import SystemClock
    from odctl.logs import follow_logs

    async with contextlib.aclosing(follow_logs(fleet, hosts, SystemClock(), name=name, tail=tail)) as batches:
        async for batch in batches:
            shown = sorted((entry for entry in batch if chosen.passes(entry)), key=lambda entry: entry.at_s)
            try:
                await asyncio.to_thread(_write, shown, as_json=as_json)
            except BrokenPipeError:
                break
    return Result(kind="logs", data={}, prose="")


def _write(entries: Sequence[LogEntry], *, as_json: bool) -> None:
    import msgspec

    from odctl.logs import entry_line

    for entry in entries:
        if as_json:
            data = {"schema": JSON_SCHEMA, "kind": "log_entry", "data": msgspec.to_builtins(entry)}
            sys.stdout.write(json.dumps(data) + "\n")
        else:
            sys.stdout.write(entry_line(entry) + "\n")
    sys.stdout.flush()
