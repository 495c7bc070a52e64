"""Ends processes on this host's devices that are none of ours, and the agent itself where something keeps it.

Never by pid alone: a process is the one meant when its pid and its start time are those that a device has now.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from agent.errors import FleetError
from agent.facts.sample import DeviceProcess, DeviceSample
from agent.journal import Journal
from agent.supervisor.paths import HostPaths
from agent.telemetry.process_start import start_ticks, stat_fields
from agent.wire.agent import Done
from agent.wire.host import EndProcess, RestartAgent

log = logging.getLogger(__name__)

SYSTEMD_VARIABLE = "INVOCATION_ID"
"""systemd gives it to whatever a unit starts."""

RESTART_DELAY_S = 0.2


def end_foreign(
    order: EndProcess,
    *,
    host: str,
    devices: Iterable[DeviceSample],
    own_pids: frozenset[int],
    journal: Journal,
) -> Done:
    """Signal the process. Raises FleetError E105 (not on that device now), E107 (ours), E805 (not allowed)."""
    process = _found(order, host=host, devices=devices, own_pids=own_pids)
    number = signal.SIGKILL if order.is_forced else signal.SIGTERM
    try:
        pidfd = os.pidfd_open(order.pid)
    except ProcessLookupError as error:
        raise _gone(order, host) from error
    try:
        # The descriptor is of one process for good: its start time is looked at once more, and then it is safe.
        if start_ticks(order.pid) != order.start_ticks:
            raise _gone(order, host)
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError as error:
        raise _gone(order, host) from error
    except PermissionError as error:
        raise FleetError(
            "E805",
            f"process {order.pid} belongs to {process.user or 'another user'}: the agent's user may not signal it",
            hint=f"log in there and end it as {process.user or 'its user'} or as root",
            host=host,
        ) from error
    finally:
        os.close(pidfd)
    journal.append(
        "ForeignProcessSignalled",
        body={
            "pid": order.pid,
            "signal": number.name,
            "device": order.device,
            "user": process.user,
            "command": process.command[:300],
            "by": order.by,
        },
    )
    return Done(message=f"{number.name} was sent to {order.pid}")


def restart_agent(order: RestartAgent, *, host: str, paths: HostPaths, journal: Journal) -> Done:
    """End this agent the way it ends for a bootstrap; ranks and gateways live on. Raises FleetError E805."""
    keeper = who_keeps(paths)
    if not keeper:
        raise FleetError(
            "E805",
            "nothing would start this agent again: neither systemd nor the keeper started it",
            hint=f"`odctl bootstrap {host}` sets up what keeps it",
            host=host,
        )
    journal.append("AgentRestartAsked", body={"by": order.by, "kept_by": keeper}, is_durable=True)
    log.info("restart asked", extra={"by": order.by, "kept_by": keeper})
    # The answer goes out first.
    asyncio.get_running_loop().call_later(RESTART_DELAY_S, os.kill, os.getpid(), signal.SIGTERM)
    return Done(message=f"it ends, and {keeper} starts it again")


def who_keeps(paths: HostPaths) -> str:
    """`systemd`, `the keeper`, or empty when nobody does."""
    try:
        keeper = int((paths.run / "keeper.pid").read_text())
    except (OSError, ValueError):
        keeper = 0
    if keeper and keeper in _ancestors(os.getpid()):
        return "the keeper"
    return "systemd" if os.environ.get(SYSTEMD_VARIABLE) and _is_in_unit() else ""


def _found(
    order: EndProcess, *, host: str, devices: Iterable[DeviceSample], own_pids: frozenset[int]
) -> DeviceProcess:
    on_device = [device for device in devices if device.id == order.device]
    found = [process for device in on_device for process in device.processes if process.pid == order.pid]
    # A probe of ours is a child of the agent; a rank and a gateway are by now nobody's, and known by their records.
    is_own = order.pid in own_pids or bool(own_pids & _ancestors(order.pid))
    if is_own or any(process.rank_id or process.deployment for process in found):
        raise FleetError(
            "E107",
            f"process {order.pid} is one of ours",
            hint="drain the host, or `odctl destroy` its deployment",
            host=host,
        )
    # A start time of 0 is one that could not be read: nobody could say which process is meant.
    if order.start_ticks <= 0 or not any(process.start_ticks == order.start_ticks for process in found):
        raise _gone(order, host)
    return next(process for process in found if process.start_ticks == order.start_ticks)


def _gone(order: EndProcess, host: str) -> FleetError:
    return FleetError(
        "E105",
        f"no process {order.pid} of that start time is on {order.device} now",
        hint="it has ended, or its pid went to another: look again",
        host=host,
    )


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1 and pid not in found:
        fields = stat_fields(pid)
        if fields is None:
            break
        pid = int(fields[1])
        found.add(pid)
    return found


def _is_in_unit() -> bool:
    """Whether this process is in the control group of one of our units: a variable alone may be inherited."""
    try:
        return "odctl-agent-" in Path("/proc/self/cgroup").read_text()
    except OSError:
        return False
