"""One verb's visit to the fleet: read the inventory, open connections, do the work, close them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from agent.errors import FleetError
from odctl.fleet import Fleet, open_fleet
from odctl.inventory import Inventory, load_inventory

T = TypeVar("T")


def visit_fleet(
    inventory_path: str,
    body: Callable[[Fleet, Inventory], Awaitable[T]],
    *,
    hosts: Callable[[Inventory], Iterable[str]] | None = None,
) -> T:
    """Run `body` on an event loop of its own with the fleet open. `hosts` narrows it to some hosts."""
    inventory = load_inventory(inventory_path)

    async def visit() -> T:
        chosen = None if hosts is None else list(hosts(inventory))
        async with open_fleet(inventory, hosts=chosen) as fleet:
            return await body(fleet, inventory)

    return asyncio.run(visit())


def warn_unreachable(missing: dict[str, FleetError]) -> None:
    """One line a host on stderr: the verb goes on without them."""
    for host in sorted(missing):
        sys.stderr.write(f"warning: {host}: {missing[host].message}\n")


def confirm(question: str, *, is_sure: bool) -> None:
    """Ask on a terminal. Without one, and without --yes, it is exit 3 and never a hanging prompt."""
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise FleetError("E111", f"{question} needs a yes, and there is no terminal to ask on", hint="pass --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FleetError("E112", "not confirmed: nothing was changed")
