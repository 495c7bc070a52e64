"""A deployment that works, invented and consistent: rates, occupancy, histories and requests in flight."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from agent.wire.gateway import RequestReport, RequestView
from odctl.bench.run import Measurement
from odctl.bench.server import find_server
from odctl.fleet import FleetSnapshot
from odctl.fleet.flow import DeploymentFlow, LinkFlow, RankFlow
from odctl.fleet.history import DeploymentRow, History
from odctl.fleet.snapshot import DeploymentView
from odctl.tui.feed import Feed
from tests.odctl.tui import frozen_fleet as frozen

LINK = "r0s0t0>r0s1t0"


def link_flow(rank_id: str, **changes: Any) -> LinkFlow:
    usual = LinkFlow(
        name=LINK,
        rank_id=rank_id,
        sent_bytes_per_s=2.5e6 if rank_id == "r0s0t0" else 0.0,
        received_bytes_per_s=0.0 if rank_id == "r0s0t0" else 2.5e6,
        wait_share=0.2,
        wait_s_per_step=0.006,
        round_trip_s=0.00031 if rank_id == "r0s0t0" else 0.004,
    )
    return msgspec.structs.replace(usual, **changes)


def rank_flow(rank_id: str, busy_share: float, **changes: Any) -> RankFlow:
    usual = RankFlow(
        rank_id=rank_id,
        span_s=10.0,
        busy_share=busy_share,
        steps_per_s=30.0,
        busy_s_per_step=busy_share / 30.0,
        tokens_per_s=60.0,
        links=(link_flow(rank_id),),
    )
    return msgspec.structs.replace(usual, **changes)


def flow(**changes: Any) -> DeploymentFlow:
    usual = DeploymentFlow(
        span_s=10.0,
        ranks=(rank_flow("r0s0t0", 0.21), rank_flow("r0s1t0", 0.83)),
        served_share=0.95,
        bubble=0.45,
    )
    return msgspec.structs.replace(usual, **changes)


def history() -> History[DeploymentRow]:
    rows: History[DeploymentRow] = History()
    for second in range(0, 300, 2):
        rows = rows.append(
            DeploymentRow(
                at_s=frozen.NOW_S - 300 + second,
                tokens_per_s=float(second % 60),
                running=2,
                queued=second % 3,
                ttft_s=0.44,
                time_per_token_s=0.033,
                kv=0.4,
                busy=0.5,
                bubble=0.45,
            )
        )
    return rows


def status(**changes: Any) -> DeploymentStatus:
    usual = frozen.status()
    assert usual.backend is not None
    backend = msgspec.structs.replace(
        usual.backend, kv_blocks=1024, blocks_held=340, busy_s=100.0, prefix_hit_tokens=4_100, preemptions=3
    )
    return msgspec.structs.replace(usual, backend=backend, **changes)


def deployment(name: str = "chat", **changes: Any) -> DeploymentView:
    usual = frozen.deployment(status=status(name=name), history=history(), flow=flow())
    record = msgspec.structs.replace(usual.record, name=name)
    return msgspec.structs.replace(usual, name=name, record=record, **changes)


def snapshot(*deployments: DeploymentView) -> FleetSnapshot:
    return frozen.snapshot(deployments=deployments or (deployment(),))


def request(number: int = 1, **changes: Any) -> RequestView:
    usual = RequestView(
        request_id=f"req_{str(number) * 24}",
        generation=3,
        replica=0,
        state="running",
        client="10.0.0.7",
        priority=0,
        prompt_tokens=120,
        computed_tokens=151,
        generated_tokens=31,
        max_tokens=100,
        age_s=4.2,
        ttft_s=0.41,
        tokens_per_s=29.5,
    )
    return msgspec.structs.replace(usual, **changes)


def requests() -> tuple[RequestView, ...]:
    return (
        request(1),
        request(2, computed_tokens=64, generated_tokens=0, ttft_s=None, tokens_per_s=None, age_s=0.3),
        request(3, state="queued", computed_tokens=0, generated_tokens=0, ttft_s=None, tokens_per_s=None),
    )


class ScriptedOperator:
    """Answers with these requests; cancels as a gateway does; measures a real server, if it is given one."""

    def __init__(self, *views: RequestView, error: FleetError | None = None, client: Any = None) -> None:
        self.views = list(views)
        self.error = error
        self.client = client
        self.cancelled: list[str] = []
        self.asked = 0
        self.benched: list[Measurement] = []

    async def requests(self, feed: Feed, status: DeploymentStatus) -> RequestReport:  # noqa: ARG002 - the Protocol's
        self.asked += 1
        if self.error is not None:
            raise self.error
        return RequestReport(deployment=status.name, requests=tuple(self.views))

    async def cancel(self, feed: Feed, status: DeploymentStatus, request_id: str) -> RequestView:  # noqa: ARG002
        found = [view for view in self.views if view.request_id == request_id]
        if not found:
            raise FleetError(
                "E125", f"no request `{request_id}` of {status.name} is in flight", hint="odctl requests"
            )
        self.views.remove(found[0])
        self.cancelled.append(request_id)
        return found[0]

    async def bench(self, feed: Feed, status: DeploymentStatus, measurement: Measurement) -> None:  # noqa: ARG002
        self.benched.append(measurement)
        if self.error is not None:
            raise self.error
        assert self.client is not None
        server = await find_server(self.client, label=status.name, api="openai", model="", timeout_s=20.0)
        await measurement.run(server)
