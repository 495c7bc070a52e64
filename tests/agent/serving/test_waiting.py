"""Who is next: important ones, then who had least."""

from __future__ import annotations

from agent.serving.request import Request
from agent.serving.waiting import KEPT_CLIENTS, WaitingRequests
from agent.wire.rank import SamplingParams


def ask(client: str, priority: int = 0) -> Request:
    return Request(
        prompt=(1,),
        params=SamplingParams(),
        max_tokens=1,
        arrived_s=0.0,
        priority=priority,
        client=client,
        on_event=lambda _: None,
    )


def test_a_client_with_many_requests_does_not_starve_another() -> None:
    waiting = WaitingRequests()
    for _ in range(100):
        waiting.push(ask("many"))
    served = []
    for turn in range(12):
        if turn in (2, 3, 4):
            waiting.push(ask("few"))
        request = waiting.pop()
        waiting.charge(request.client, 100.0)
        served.append(request.client)
    assert served.count("few") == 3
    assert served[:9].count("few") == 3


def test_who_was_away_has_saved_nothing_up() -> None:
    waiting = WaitingRequests()
    waiting.push(ask("busy"))
    waiting.charge("busy", 1e6)
    for _ in range(4):
        waiting.push(ask("late"))
    for _ in range(4):
        waiting.push(ask("busy"))
    served = []
    while waiting:
        request = waiting.pop()
        waiting.charge(request.client, 10.0)
        served.append(request.client)
    assert served[:4].count("busy") == 2, served


def test_priorities_come_before_fairness_and_the_returned_before_their_class() -> None:
    waiting = WaitingRequests()
    plain, urgent, returned, idle = ask("a"), ask("b", -1), ask("c"), ask("d", 5)
    waiting.charge("b", 1e6)
    for request in (idle, plain, urgent):
        waiting.push(request)
    waiting.push_front(returned)
    assert list(waiting) == [urgent, returned, plain, idle]
    assert [waiting.pop() for _ in range(len(waiting))] == [urgent, returned, plain, idle]
    assert waiting.peek() is None


def test_one_that_leaves_is_found_wherever_it_stands() -> None:
    waiting = WaitingRequests()
    first, second, returned = ask("a"), ask("a"), ask("a")
    waiting.push(first)
    waiting.push(second)
    waiting.push_front(returned)
    assert waiting.discard(second)
    assert not waiting.discard(second)
    assert not waiting.discard(ask("z", 3))
    assert waiting.discard(returned)
    assert list(waiting) == [first]


def test_counters_of_clients_that_left_are_bounded() -> None:
    waiting = WaitingRequests()
    for number in range(KEPT_CLIENTS + 10):
        waiting.charge(f"client {number}", 1.0)
    assert len(waiting._charged) == KEPT_CLIENTS
