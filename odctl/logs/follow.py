"""Every host's journal and logs, read once or followed as one stream of entries.

A host that goes away is said and asked again until it is back; nothing is kept here but where each stream stands.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from agent.errors import FleetError
from agent.wire.agent import Event
from agent.wire.host import LogLines
from odctl.fleet import Fleet
from odctl.fleet.clock import Clock
from odctl.logs.entry import FOLLOW, JOURNAL, Level, LogEntry, event_entry, line_entries

MAX_HOSTS = 128
"""Followed at once; two streams each."""
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 15.0
QUEUE_ENTRIES = 1000
BATCH_S = 0.1


async def read_logs(
    fleet: Fleet, hosts: Sequence[str], *, name: str = "", tail: int = 200
) -> tuple[list[LogEntry], dict[str, FleetError]]:
    """The last entries of each log and journal, oldest first, and the hosts that did not answer.

    `name` is a glob over logs, the journal among them; empty: all.
    """
    entries: list[LogEntry] = []
    missing: dict[str, FleetError] = {}
    slots = asyncio.Semaphore(MAX_HOSTS)

    async def read(host: str) -> None:
        async with slots:
            try:
                entries.extend(await _read_host(fleet, host, name=name, tail=tail))
            except FleetError as error:
                missing[host] = error

    async with asyncio.TaskGroup() as group:
        for host in hosts:
            group.create_task(read(host))
    entries.sort(key=lambda entry: entry.at_s)
    return entries, missing


async def _read_host(fleet: Fleet, host: str, *, name: str, tail: int) -> list[LogEntry]:
    entries: list[LogEntry] = []
    if _is_wanted(JOURNAL, name):
        route = f"/v1/events?limit={tail}"
        async with aclosing(fleet.stream(host, "GET", route, None, Event)) as events:
            entries += [event_entry(event) async for event in events]
    if name != JOURNAL:
        route = f"/v1/logs?tail={tail}&frames=1"
        async with aclosing(fleet.stream(host, "GET", route, None, LogLines)) as logs:
            async for lines in logs:
                if _is_wanted(lines.name, name):
                    entries += line_entries(host, lines)
    return entries


def _is_wanted(source: str, name: str) -> bool:
    return not name or fnmatch.fnmatchcase(source, name)


# --- following ----------------------------------------------------------------------------------------


async def follow_logs(
    fleet: Fleet, hosts: Sequence[str], clock: Clock, *, name: str = "", tail: int = 100
) -> AsyncGenerator[tuple[LogEntry, ...], None]:
    """Batches of entries: the past of every host first, as it comes, then what is new. Never ends by itself.

    Past entries of different hosts come mixed: whoever shows them sorts by time. At most `MAX_HOSTS` are followed;
    the first batch says so where more were asked for.
    """
    followed = list(hosts)[:MAX_HOSTS]
    queue: asyncio.Queue[LogEntry] = asyncio.Queue(QUEUE_ENTRIES)
    if len(followed) < len(hosts):
        said = f"{len(followed)} of {len(hosts)} hosts are followed: narrow it down with host="
        yield (LogEntry(at_s=clock.now_s(), host="", source=FOLLOW, level="warning", text=said),)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_follow_host(fleet, host, clock, queue, name=name, tail=tail)) for host in followed
        ]
        try:
            while True:
                yield await _batch(queue)
        except GeneratorExit:
            # The group would wrap it; closing an iterator is no error.
            return
        finally:
            for task in tasks:
                task.cancel()


async def _batch(queue: asyncio.Queue[LogEntry]) -> tuple[LogEntry, ...]:
    """Everything that is there once something is, and what comes within a moment after it."""
    batch = [await queue.get()]
    await asyncio.sleep(BATCH_S)
    while not queue.empty() and len(batch) < QUEUE_ENTRIES:
        batch.append(queue.get_nowait())
    return tuple(batch)


async def _follow_host(
    fleet: Fleet, host: str, clock: Clock, queue: asyncio.Queue[LogEntry], *, name: str, tail: int
) -> None:
    """Both streams of one host, each begun again when it ends, each from where it stood."""
    async with asyncio.TaskGroup() as group:
        if _is_wanted(JOURNAL, name):
            group.create_task(_follow_journal(fleet, host, clock, queue, tail=tail))
        if name != JOURNAL:
            group.create_task(_follow_files(fleet, host, clock, queue, name=name, tail=tail))


async def _follow_journal(
    fleet: Fleet, host: str, clock: Clock, queue: asyncio.Queue[LogEntry], *, tail: int
) -> None:
    last_id = 0

    async def once(report_back: Callable[[], Awaitable[None]]) -> None:
        nonlocal last_id
        where = f"after={last_id}&limit=10000" if last_id else f"limit={tail}"
        route = f"/v1/events?{where}&follow=1"
        async with aclosing(fleet.stream(host, "GET", route, None, Event)) as events:
            async for event in events:
                await report_back()
                last_id = event.event_id
                await queue.put(event_entry(event))

    await _again_and_again(once, host, clock, queue)


async def _follow_files(
    fleet: Fleet, host: str, clock: Clock, queue: asyncio.Queue[LogEntry], *, name: str, tail: int
) -> None:
    newest_s: dict[str, float] = {}

    async def once(report_back: Callable[[], Awaitable[None]]) -> None:
        route = f"/v1/logs?tail={tail}&follow=1"
        async with aclosing(fleet.stream(host, "GET", route, None, LogLines)) as found:
            async for lines in found:
                await report_back()
                if not _is_wanted(lines.name, name):
                    continue
                seen_s = newest_s.get(lines.name, 0.0)
                for entry in line_entries(host, lines):
                    # After a loss the tail is told again: what was told before it is not told twice.
                    if not lines.is_past or entry.at_s > seen_s:
                        newest_s[lines.name] = max(newest_s.get(lines.name, 0.0), entry.at_s)
                        await queue.put(entry)

    await _again_and_again(once, host, clock, queue, tells=_is_of_files)


async def _again_and_again(
    once: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],
    host: str,
    clock: Clock,
    queue: asyncio.Queue[LogEntry],
    *,
    tells: Callable[[FleetError], bool] = lambda _: True,
) -> None:
    """Follow, and begin again when that ends. What went wrong is said once, and that it is over, where `tells`."""
    wait_s = RETRY_FIRST_S
    trouble = ""

    async def say(level: Level, text: str, *, is_good: bool = False) -> None:
        await queue.put(
            LogEntry(at_s=clock.now_s(), host=host, source=FOLLOW, level=level, text=text, is_good=is_good)
        )

    async def report_back() -> None:
        nonlocal wait_s, trouble
        wait_s = RETRY_FIRST_S
        if trouble:
            trouble = ""
            await say("info", "is back", is_good=True)

    while True:
        try:
            await once(report_back)
            failure = FleetError("E211", "the agent ended its stream")
        except FleetError as error:
            failure = FleetError(error.code, error.message, hint=error.hint)
        if tells(failure) and str(failure) != trouble:
            trouble = str(failure)
            await say("error", f"is not followed: {trouble}")
        await clock.sleep(wait_s)
        wait_s = min(RETRY_MAX_S, wait_s * 2)


def _is_of_files(error: FleetError) -> bool:
    """Whether it is trouble of the log files alone: of a host that cannot be reached its journal tells."""
    return not error.code.startswith("E2")
