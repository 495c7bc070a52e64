"""A gateway's counts become stretches: what came between two looks, told once it is over."""

from __future__ import annotations

import pytest

from agent.supervisor.stretch import IDLE_S, MAX_STRETCH_S, GatewayMeter, Stretch
from tests.agent.supervisor.gateway_counts import after, counts


def running_meter() -> GatewayMeter:
    """Of a backend that served before."""
    return GatewayMeter(is_new=False, now_s=0.0)


def test_a_stretch_is_of_what_came_between_and_is_told_when_all_is_quiet() -> None:
    meter = running_meter()
    assert meter.look(after(5), now_s=0.0) is None
    assert meter.look(after(5, running=2), now_s=1.0) is None
    assert meter.look(after(7), now_s=2.0) is None, "another request may follow at once"
    told = meter.look(after(7), now_s=2.0 + IDLE_S)
    assert told is not None
    assert (told.finished, told.failed, told.is_at_rest) == (2, 0, True)
    assert (told.prompt_tokens, told.answer_tokens) == (100, 50)
    assert told.ttft_s == pytest.approx(0.1)
    assert told.time_per_token_s == pytest.approx(0.02)
    assert told.tokens_per_s == pytest.approx(50 / 1.08)
    assert told.observed_s == 2.0 + IDLE_S
    assert meter.look(after(7), now_s=20.0) is None, "nothing new came"


def test_a_look_that_sees_no_backend_changes_nothing() -> None:
    meter = running_meter()
    meter.look(counts(), now_s=0.0)
    meter.look(after(2), now_s=1.0)
    assert meter.look(None, now_s=1.5) is None
    assert meter.look(after(2), now_s=1.0 + IDLE_S) is not None


def test_under_a_load_without_end_a_stretch_is_due_now_and_then() -> None:
    meter = running_meter()
    meter.look(counts(), now_s=0.0)
    busy = after(40, running=3)
    assert meter.look(busy, now_s=MAX_STRETCH_S - 1) is None
    told = meter.look(busy, now_s=MAX_STRETCH_S)
    assert told is not None
    assert not told.is_at_rest


@pytest.mark.parametrize("together", [1, 4])
def test_streams_are_the_requests_that_were_there_together(together: int) -> None:
    told = Stretch(before=counts(), after=after(40, together=together), observed_s=60.0)
    assert told.streams == pytest.approx(together)


def test_tokens_are_told_by_how_many_requests_ran() -> None:
    told = Stretch(
        before=after(9, tokens_by_streams={1: 40, 2: 5}),
        after=after(40, tokens_by_streams={1: 40, 2: 7, 8: 3}),
        observed_s=60.0,
    )
    assert told.tokens_by_streams == {2: 2, 8: 3}


def test_a_new_backend_is_measured_from_its_first_request_on() -> None:
    """Looks are up to a second apart, and short requests are over by the first."""
    meter = GatewayMeter(is_new=True, now_s=10.0)
    assert meter.look(None, now_s=10.2) is None
    assert meter.look(after(3, tokens_by_streams={1: 150}), now_s=11.0) is None
    told = meter.look(after(3, tokens_by_streams={1: 150}), now_s=11.0 + IDLE_S)
    assert told is not None
    assert (told.finished, told.answer_tokens, told.tokens_by_streams) == (3, 50, {1: 150})
    assert told.observed_s == 1.0 + IDLE_S


def test_counts_that_began_anew_are_told_from_their_beginning() -> None:
    meter = running_meter()
    meter.look(after(9), now_s=0.0)
    assert meter.look(after(1), now_s=1.0) is None
    told = meter.look(after(1), now_s=9.0)
    assert told is not None
    assert told.finished == 1
    assert meter.look(after(3, generation=4), now_s=18.0) is None, "another request may follow at once"
    told = meter.look(after(3, generation=4), now_s=27.0)
    assert told is not None
    assert (told.generation, told.finished) == (4, 3), "a heal's gateway counts from its own beginning"


def test_of_nothing_there_is_no_mean() -> None:
    told = Stretch(before=counts(), after=counts(failed=1), observed_s=1.0)
    assert (told.ttft_s, told.time_per_token_s, told.tokens_per_s, told.streams) == (None, None, None, 1.0)


def test_stretches_are_joined_only_where_one_begins_where_the_other_ends() -> None:
    first = Stretch(before=counts(), after=after(2), observed_s=3.0)
    second = Stretch(before=after(2), after=after(5), observed_s=4.0)
    joined = first.joined(second)
    assert joined is not None
    assert (joined.finished, joined.observed_s) == (5, 7.0)
    assert second.joined(first) is None
