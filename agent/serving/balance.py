"""Which replica takes a request. No I/O. Deterministic: ties go to the first."""

from __future__ import annotations

from collections.abc import Sequence

from agent.serving.scheduler import QueueFull, Scheduler


def load_of(scheduler: Scheduler) -> float:
    """Requests per slot, waiting ones included."""
    return (scheduler.num_running + scheduler.num_queued) / scheduler.slots


def choose_replica(schedulers: Sequence[Scheduler], *, queue: int) -> int:
    """Index of the least loaded. Raises QueueFull when nobody has a free slot and `queue` requests wait in all."""
    if not any(each.has_free_slot for each in schedulers):
        waiting = sum(each.num_queued for each in schedulers)
        if waiting >= queue:
            raise QueueFull
    return min(range(len(schedulers)), key=lambda index: load_of(schedulers[index]))


def even_out(scheduler: Scheduler, others: Sequence[Scheduler]) -> None:
    """One with room takes over what waits at others."""
    while scheduler.has_free_slot:
        waiting = [each for each in others if each.num_queued]
        if not waiting:
            return
        busiest = max(waiting, key=lambda each: each.num_queued)
        for request in busiest.take_queued(1):
            scheduler.submit(request)
