"""What the host page asks of a host beside the snapshot, and does to it.

Every change is a POST to an agent or an apply, so that whoever forbids changes below the screens forbids these too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from agent.errors import FleetError
from agent.facts.sample import DeviceProcess
from agent.wire.agent import Done
from agent.wire.host import EndProcess, KernelLog, RestartAgent
from odctl.fleet import Fleet
from odctl.fleet.operator import operator_name
from odctl.inventory import Inventory
from odctl.logs import read_logs
from odctl.ssh.shell import ShellCommand, shell_command
from odctl.tui.feed import Feed
from odctl.tui.model.host_extras import HostExtras

if TYPE_CHECKING:
    from odctl.draining import Drain, OnDrainEvent

KERNEL_LINES = 40
LOG_LINES = 30


class HostOperator(Protocol):
    """Every method but `extras` raises FleetError; `on_event` is called on the fleet's thread."""

    async def extras(self, feed: Feed, host: str) -> HostExtras: ...

    async def plan_drain(self, feed: Feed, host: str) -> Drain: ...

    async def drain(self, feed: Feed, drain: Drain, on_event: OnDrainEvent) -> tuple[str, ...]: ...

    async def restart_agent(self, feed: Feed, host: str) -> str: ...

    async def end_process(
        self, feed: Feed, host: str, device: str, process: DeviceProcess, *, is_forced: bool
    ) -> str: ...

    def shell(self, host: str) -> ShellCommand: ...


class FleetHostOperator:
    """Asks the agents. Without an inventory there is no way to a shell."""

    def __init__(self, inventory: Inventory | None = None) -> None:
        self._inventory = inventory

    async def extras(self, feed: Feed, host: str) -> HostExtras:
        async def work(fleet: Fleet) -> HostExtras:
            found = HostExtras()
            try:
                kernel = await fleet.get(host, f"/v1/kernel?tail={KERNEL_LINES}", KernelLog)
                found = msgspec.structs.replace(found, kernel=kernel)
            except FleetError as error:
                found = msgspec.structs.replace(found, kernel_trouble=str(error))
            entries, missing = await read_logs(fleet, (host,), tail=LOG_LINES)
            trouble = str(missing[host]) if host in missing else ""
            return msgspec.structs.replace(found, entries=tuple(entries[-LOG_LINES:]), entries_trouble=trouble)

        try:
            return await feed.call(work)
        except FleetError as error:
            return HostExtras(kernel_trouble=str(error), entries_trouble=str(error))

    async def plan_drain(self, feed: Feed, host: str) -> Drain:
        from odctl.draining import plan_drain  # planning, with its numpy, only where something is planned

        async def work(fleet: Fleet) -> Drain:
            return await plan_drain(fleet, host, cluster=feed.cluster)

        return await feed.call(work)

    async def drain(self, feed: Feed, drain: Drain, on_event: OnDrainEvent) -> tuple[str, ...]:
        from odctl.draining import perform_drain

        async def work(fleet: Fleet) -> tuple[str, ...]:
            return await perform_drain(fleet, drain, cluster=feed.cluster, on_event=on_event)

        return await feed.call(work)

    async def restart_agent(self, feed: Feed, host: str) -> str:
        async def work(fleet: Fleet) -> str:
            return (await fleet.post(host, "/v1/restart", RestartAgent(by=operator_name()), Done)).message

        return await feed.call(work)

    async def end_process(
        self, feed: Feed, host: str, device: str, process: DeviceProcess, *, is_forced: bool
    ) -> str:
        order = EndProcess(
            pid=process.pid,
            start_ticks=process.start_ticks,
            device=device,
            by=operator_name(),
            is_forced=is_forced,
        )

        async def work(fleet: Fleet) -> str:
            return (await fleet.post(host, "/v1/end_process", order, Done)).message

        return await feed.call(work)

    def shell(self, host: str) -> ShellCommand:
        if self._inventory is None:
            raise FleetError("E109", "no inventory says how this host is reached", hint="open the UI over one")
        return shell_command(self._inventory, host)
