"""Rates of a deployment are differences of two of its statuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.wire.agent import DeploymentStatus, RankView
from agent.wire.rank import LinkCount
from odctl.fleet.flow import flow_between
from odctl.fleet.history import deployment_row
from tests.odctl.tui import frozen_fleet as frozen


def link(*, sent: int = 0, received: int = 0, wait_s: float = 0.0) -> LinkCount:
    return LinkCount(
        name="r0s0t0>r0s1t0", sent_bytes=sent, received_bytes=received, wait_s=wait_s, round_trip_s=3e-4
    )


def rank(view: RankView, **changes: Any) -> RankView:
    assert view.status is not None
    return msgspec.structs.replace(view, status=msgspec.structs.replace(view.status, **changes))


def status(first: dict[str, Any], second: dict[str, Any], *, busy_s: float, **more: Any) -> DeploymentStatus:
    usual = frozen.status()
    assert usual.backend is not None
    backend = msgspec.structs.replace(usual.backend, busy_s=busy_s, **more)
    ranks = (rank(usual.ranks[0], **first), rank(usual.ranks[1], **second))
    return msgspec.structs.replace(usual, ranks=ranks, backend=backend)


def with_backend(found: DeploymentStatus, **changes: Any) -> DeploymentStatus:
    assert found.backend is not None
    return msgspec.structs.replace(found, backend=msgspec.structs.replace(found.backend, **changes))


BEFORE = status(
    {"busy_s": 10.0, "steps": 100, "tokens": 1000, "at_s": 50.0, "links": (link(sent=1000),)},
    {"busy_s": 20.0, "steps": 100, "tokens": 1000, "at_s": 7.0, "links": (link(received=1000, wait_s=1.0),)},
    busy_s=30.0,
)
AFTER = status(
    {"busy_s": 12.0, "steps": 140, "tokens": 1400, "at_s": 60.0, "links": (link(sent=81_000),)},
    {"busy_s": 26.0, "steps": 140, "tokens": 1400, "at_s": 17.0, "links": (link(received=81_000, wait_s=3.0),)},
    busy_s=40.0,
)


def test_busy_shares_are_by_the_ranks_own_clocks() -> None:
    flow = flow_between(BEFORE, AFTER, span_s=9.0)
    assert flow is not None
    first, second = flow.ranks
    assert (first.busy_share, second.busy_share) == (0.2, 0.6)
    assert (first.span_s, first.steps_per_s, first.tokens_per_s) == (10.0, 4.0, 40.0)
    assert (first.busy_s_per_step, second.busy_s_per_step) == (0.05, 0.15)


def test_a_link_is_seen_from_both_its_ends() -> None:
    flow = flow_between(BEFORE, AFTER, span_s=10.0)
    assert flow is not None
    [sends], [receives] = (each.links for each in flow.ranks)
    assert (sends.sent_bytes_per_s, receives.received_bytes_per_s) == (8000.0, 8000.0)
    assert (receives.wait_share, receives.wait_s_per_step) == (0.2, 0.05)
    assert sends.round_trip_s == 3e-4


def test_the_bubble_is_what_is_left_of_the_served_time() -> None:
    flow = flow_between(BEFORE, AFTER, span_s=10.0)
    assert flow is not None
    assert flow.served_share == 1.0
    assert flow.bubble == pytest.approx(1 - 0.4)
    served_half = flow_between(BEFORE, with_backend(AFTER, busy_s=35.0), span_s=10.0)
    assert served_half is not None
    assert served_half.bubble == pytest.approx(1 - 0.4 / 0.5)
    idle = flow_between(BEFORE, msgspec.structs.replace(AFTER, backend=BEFORE.backend), span_s=10.0)
    assert idle is not None
    assert (idle.served_share, idle.bubble) == (0.0, None), "of nothing there is no share"


def test_what_cannot_be_compared_is_left_out() -> None:
    """1. A rank started anew. 2. A link built anew. 3. A rank without a word. 4. Another generation's gateway."""
    assert flow_between(BEFORE, AFTER, span_s=0.5) is None, "too close together"
    anew = msgspec.structs.replace(AFTER, ranks=(rank(AFTER.ranks[0], pid=9), AFTER.ranks[1]))
    flow = flow_between(BEFORE, anew, span_s=10.0)
    assert flow is not None
    assert [each.rank_id for each in flow.ranks] == ["r0s1t0"]
    relinked = msgspec.structs.replace(AFTER, ranks=(rank(AFTER.ranks[0], links=(link(sent=5),)), AFTER.ranks[1]))
    flow = flow_between(BEFORE, relinked, span_s=10.0)
    assert flow is not None
    assert (flow.ranks[0].busy_share, flow.ranks[0].links) == (0.2, ())
    silent = msgspec.structs.replace(AFTER, ranks=(msgspec.structs.replace(AFTER.ranks[0], status=None),))
    flow = flow_between(BEFORE, silent, span_s=10.0)
    assert flow is not None
    assert (flow.ranks, flow.bubble) == ((), None)
    flow = flow_between(BEFORE, with_backend(AFTER, generation=4), span_s=10.0)
    assert flow is not None
    assert (flow.served_share, flow.bubble) == (None, None)


def test_ranks_of_an_earlier_release_are_reckoned_by_the_looks() -> None:
    def unstamped(found: DeploymentStatus) -> DeploymentStatus:
        return msgspec.structs.replace(found, ranks=tuple(rank(view, at_s=0.0) for view in found.ranks))

    flow = flow_between(unstamped(BEFORE), unstamped(AFTER), span_s=4.0)
    assert flow is not None
    assert (flow.ranks[0].busy_share, flow.ranks[1].busy_share) == (0.5, 1.0), "6 s in 4: as coarse as the looks"


def test_a_history_row_keeps_unknowns_unknown() -> None:
    flow = flow_between(BEFORE, AFTER, span_s=10.0)
    assert AFTER.backend is not None
    row = deployment_row(AFTER.backend, flow, at_s=1.0)
    assert row.kv is None
    assert row.busy == pytest.approx(0.4)
    assert row.bubble == pytest.approx(0.6)
    counted = msgspec.structs.replace(AFTER.backend, kv_blocks=40, blocks_held=10, finished=0)
    row = deployment_row(counted, None, at_s=1.0)
    assert (row.kv, row.busy, row.bubble, row.ttft_s) == (0.25, None, None, None)
