from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from agent.errors import ErrorDetail
from agent.facts.fault import Fault
from agent.wire.agent import DeploymentRecord, FaultReport
from odctl.fleet import Fleet, watch_fleet
from odctl.fleet.history import History, HostRow, host_row
from odctl.fleet.watch import FleetWatch
from odctl.ssh.http import agent_client
from tests.odctl.fleet import test_flow, values
from tests.odctl.fleet.served_agent import ServedAgent, access, serving
from tests.odctl.fleet.until import until


class HandClock:
    """Time stands until the test moves it; sleepers wake when their time has come."""

    def __init__(self) -> None:
        self._now_s = values.EPOCH_S
        self._moved = asyncio.Condition()
        self.sleepers = 0

    def now_s(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        wake_s = self._now_s + seconds
        async with self._moved:
            self.sleepers += 1
            await self._moved.wait_for(lambda: self._now_s >= wake_s)
            self.sleepers -= 1

    async def advance(self, seconds: float) -> None:
        async with self._moved:
            self._now_s += seconds
            self._moved.notify_all()


@pytest.fixture
def agent(tmp_path: Path) -> ServedAgent:
    served = ServedAgent(tmp_path / "one")
    served.answers |= {
        "/v1/facts": values.facts("one"),
        "/v1/handshake": values.handshake("one"),
        "/v1/deployments": (),
        "/v1/faults": FaultReport(faults=()),
    }
    return served


@asynccontextmanager
async def watching(agent: ServedAgent, clock: HandClock) -> AsyncIterator[FleetWatch]:
    fleet = Fleet([access("one", agent.root)], cluster="lab", open_client=agent_client)
    watch = FleetWatch(fleet, clock)
    try:
        async with asyncio.TaskGroup() as group:
            loops = watch.start(group)
            yield watch
            for loop in loops:
                loop.cancel()
    finally:
        await fleet.close()


def state(watch: FleetWatch) -> str:
    return watch.snapshot().hosts[0].state


async def test_a_host_goes_live_stale_lost_and_live_again(agent: ServedAgent) -> None:
    clock = HandClock()
    async with watching(agent, clock) as watch:
        assert state(watch) == "connecting"
        await until(lambda: state(watch) == "unreachable")
        assert "odctl bootstrap one" in watch.snapshot().hosts[0].way_out
        async with serving(agent):
            agent.add_sample(values.sample("one", at_s=values.EPOCH_S))
            await clock.advance(2.0)
            await until(lambda: state(watch) == "live")
            await clock.advance(10.0)
            view = watch.snapshot().hosts[0]
            assert (view.state, view.sample_age_s) == ("stale", 10.0)
            assert view.reason == "no sample for 10 s"
            agent.add_sample(values.sample("one", at_s=values.EPOCH_S + 10))
            await until(lambda: state(watch) == "live")
        await until(lambda: state(watch) == "lost")
        lost = watch.snapshot().hosts[0]
        assert lost.sample is not None
        assert lost.sample.taken_at_s == values.EPOCH_S + 10
        agent.take_calls()
        async with serving(agent):
            agent.add_sample(values.sample("one", at_s=values.EPOCH_S + 20))
            await clock.advance(20.0)
            await until(lambda: state(watch) == "live")
            assert [row.at_s - values.EPOCH_S for row in watch.snapshot().hosts[0].history.rows()] == [0, 10, 20]


async def test_a_reconnect_asks_only_for_the_past_it_lacks(agent: ServedAgent) -> None:
    clock = HandClock()
    agent.add_sample(values.sample("one"))
    async with serving(agent), watching(agent, clock) as watch:
        await until(lambda: state(watch) == "live")
        agent.hang_up()
        await until(lambda: state(watch) == "lost")
        agent.take_calls()
        await clock.advance(5.0)
        await until(lambda: len(agent.sample_queries) == 2)
    assert agent.sample_queries[0].startswith("history_s=900&")
    assert int(agent.sample_queries[1].split("=")[1].split("&")[0]) in (8, 9)


async def test_the_controllers_word_on_a_deployment_is_asked_for(agent: ServedAgent) -> None:
    clock = HandClock()
    agent.add_sample(values.sample("one"))
    agent.answers["/v1/deployments"] = (
        DeploymentRecord(name="chat", generation=3, plan_hash="p", controller="one", members=()),
    )
    agent.errors["/v1/deployments/chat"] = ErrorDetail(code="E701", message="not here")
    async with serving(agent), watching(agent, clock) as watch:
        await until(lambda: any(view.error is not None for view in watch.snapshot().deployments))
        deployment = watch.snapshot().deployments[0]
        assert deployment.record.generation == 3
        assert deployment.error == ErrorDetail(code="E701", message="not here", host="one")


async def test_rates_of_a_deployment_come_of_two_looks_and_go_with_its_controller(agent: ServedAgent) -> None:
    clock = HandClock()
    agent.add_sample(values.sample("one"))
    agent.answers["/v1/deployments"] = (
        DeploymentRecord(name="chat", generation=3, plan_hash="p", controller="one", members=()),
    )
    agent.answers["/v1/deployments/chat"] = test_flow.BEFORE
    async with serving(agent), watching(agent, clock) as watch:
        await until(lambda: any(view.status is not None for view in watch.snapshot().deployments))
        assert watch.snapshot().deployments[0].flow is None, "one look gives no rate"
        agent.answers["/v1/deployments/chat"] = test_flow.AFTER
        await clock.advance(2.0)
        await until(lambda: watch.snapshot().deployments[0].flow is not None)
        view = watch.snapshot().deployments[0]
        assert view.flow is not None
        assert [rank.busy_share for rank in view.flow.ranks] == [0.2, 0.6]
        assert view.history.last is not None
        assert view.history.last.busy == pytest.approx(0.4)
        agent.errors["/v1/deployments/chat"] = ErrorDetail(code="E701", message="not here")
        # Who is not asleep yet would sleep from the new time on: all three polls have to be.
        await until(lambda: clock.sleepers == 3)
        await clock.advance(2.0)
        await until(lambda: watch.snapshot().deployments[0].error is not None)
        assert watch.snapshot().deployments[0].flow is None, "rates of before are rates no more"


async def test_open_faults_come_before_healed_ones(agent: ServedAgent) -> None:
    def fault(fault_id: str, at_s: float, healed_at_s: float | None) -> Fault:
        return Fault(
            fault_id=fault_id,
            kind="rank_lost",
            severity="fault",
            observed_at_s=at_s,
            observed_by="one",
            host="one",
            message="rank r0s0t0 ended",
            healed_at_s=healed_at_s,
        )

    clock = HandClock()
    agent.add_sample(values.sample("one"))
    agent.answers["/v1/faults"] = FaultReport(
        faults=(fault("healed", 9.0, 10.0), fault("old", 1.0, None), fault("new", 2.0, None))
    )
    async with serving(agent), watching(agent, clock) as watch:
        await until(lambda: len(watch.snapshot().faults) == 3)
        assert [found.fault_id for found in watch.snapshot().faults] == ["new", "old", "healed"]


async def test_snapshots_come_once_a_tick_and_stop_when_closed(agent: ServedAgent) -> None:
    clock = HandClock()
    agent.add_sample(values.sample("one"))
    fleet = Fleet([access("one", agent.root)], cluster="lab", open_client=agent_client)
    async with serving(agent):
        async with aclosing(watch_fleet(fleet, clock)) as snapshots:
            first = await anext(snapshots)
            async with asyncio.TaskGroup() as group:
                second = group.create_task(anext(snapshots))
                await until(lambda: bool(agent.sample_queries))
                await clock.advance(1.0)
            assert second.result().taken_at_s == first.taken_at_s + 1.0
        await fleet.close()


def test_history_keeps_fifteen_minutes_and_shares_its_past() -> None:
    history: History[HostRow] = History()
    for second in range(2000):
        history = history.append(host_row(values.sample("one", at_s=float(second))))
    frozen = history.rows()
    history.append(host_row(values.sample("one", at_s=2000.0)))
    assert history.rows() == frozen
    assert frozen[-1].at_s == 1999.0
    assert 900 <= len(frozen) <= 960


def test_a_host_without_a_gpu_has_no_gpu_history_rather_than_zero() -> None:
    row = host_row(values.sample("one"))
    assert (row.gpu, row.gpu_memory, row.power_w) == (None, None, None)
    assert row.memory == 0.25
