from __future__ import annotations

import pytest

from agent.serving.balance import choose_replica, even_out, load_of
from agent.serving.scheduler import QueueFull, Scheduler
from tests.agent.serving.test_scheduler import make_request, make_scheduler, next_step


def busy(num_requests: int, *, slots: int) -> Scheduler:
    scheduler = make_scheduler(slots=slots, queue=100)
    for _ in range(num_requests):
        scheduler.submit(make_request(2))
    return scheduler


def test_the_least_loaded_takes_a_request_and_the_first_of_equals() -> None:
    assert choose_replica([busy(2, slots=4), busy(1, slots=4), busy(1, slots=4)], queue=0) == 1
    assert choose_replica([busy(3, slots=4), busy(1, slots=1)], queue=0) == 0
    assert load_of(busy(3, slots=4)) == 0.75


def test_the_queue_is_one_for_all_replicas() -> None:
    full = [busy(3, slots=1), busy(2, slots=1)]
    assert choose_replica(full, queue=6) == 1
    with pytest.raises(QueueFull):
        choose_replica(full, queue=5)


def test_one_with_room_takes_over_from_the_longest_queue() -> None:
    idle, short, long = busy(0, slots=2), busy(3, slots=2), busy(6, slots=2)
    next_step(short)
    next_step(long)
    even_out(idle, [short, long])
    assert [each.num_queued for each in (idle, short, long)] == [2, 1, 2]
