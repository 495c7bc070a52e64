"""Every host's journal and faults, read once: what `odctl faults --timeline` folds."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec

from agent.errors import FleetError
from agent.facts.sample import HostSample
from agent.wire.agent import FaultReport
from odctl.fleet.clock import Clock
from odctl.fleet.connection import MAX_PARALLEL_HOSTS, Fleet
from odctl.fleet.journals import JournalTail
from odctl.timeline import HostJournal, Silence, Timeline, fold

SAMPLE_TIMEOUT_S = 2.5
"""Agents sample once a second; a clock that is not told within this stays unknown."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The timeline now, and hosts that did not answer."""

    timeline: Timeline
    now_s: float
    missing: dict[str, FleetError]


async def read_timeline(fleet: Fleet, clock: Clock) -> Reading:
    """Ask every host for its journal, its faults and its clock. A host that does not answer is told as a lane."""
    reports = await fleet.get_all("/v1/faults", FaultReport)
    missing = {host: answer for host, answer in reports.items() if isinstance(answer, FleetError)}
    slots = asyncio.Semaphore(MAX_PARALLEL_HOSTS)

    async def read(host: str) -> HostJournal:
        async with slots:
            tail = JournalTail(host)
            await _read_clock(fleet, host, tail, clock)
            await tail.read(fleet, now_s=clock.now_s())
            return tail.view

    async with asyncio.TaskGroup() as group:
        tasks = {host: group.create_task(read(host)) for host in fleet.hosts if host not in missing}
    return Reading(
        timeline=fold(
            {host: task.result() for host, task in tasks.items()},
            faults=[
                fault
                for answer in reports.values()
                if not isinstance(answer, FleetError)
                for fault in answer.faults
            ],
            silent={
                host: Silence(since_s=None, why=error.message, way_out=error.hint)
                for host, error in missing.items()
            },
        ),
        now_s=clock.now_s(),
        missing=missing,
    )


async def _read_clock(fleet: Fleet, host: str, tail: JournalTail, clock: Clock) -> None:
    """The next sample, which is sent as it is taken. Without one the clock stays unknown, and the view says so."""
    route = "/v1/samples?follow=1"
    try:
        async with (
            asyncio.timeout(SAMPLE_TIMEOUT_S),
            aclosing(fleet.stream(host, "GET", route, None, HostSample)) as samples,
        ):
            async for sample in samples:
                tail.take_time(sent_s=sample.taken_at_s, received_s=clock.now_s())
                return
    except (TimeoutError, FleetError):
        return
