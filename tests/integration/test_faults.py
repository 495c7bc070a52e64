"""Ranks, agents and hosts are killed and stopped under 8 streams, on a deployment of two replicas.

What is struck ends its streams with an error of the protocol's own, the other replica's go on, and it heals.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.integration.clients import Asker, ask, streams
from tests.integration.cluster import Cluster, free_listen, is_running, open_cluster, until
from tests.integration.faults import DETECT_LIMIT_S, NUM_STREAMS, Struck, strike

NAME = "chat"
CONTROLLER = "h1"


class Deployed(msgspec.Struct):
    cluster: Cluster
    listen: str
    replica_hosts: dict[int, list[str]]

    def strike(self, blow: object, **choices: object) -> Struck:
        return strike(
            self.cluster,
            blow,  # type: ignore[arg-type]
            deployment=NAME,
            listen=self.listen,
            controller=CONTROLLER,
            **choices,  # type: ignore[arg-type]
        )

    @property
    def struck_rank(self) -> str:
        """A rank of the replica that does not live on the controller's host, its last stage."""
        return f"r{self.struck_replica}s1t0"

    @property
    def struck_replica(self) -> int:
        return next(replica for replica, hosts in self.replica_hosts.items() if CONTROLLER not in hosts)


@pytest.fixture(scope="module")
def standing(endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    listen = free_listen()
    with open_cluster(num_hosts=4) as cluster:
        plan = cluster.plan(
            endless_model,
            tmp_path_factory.mktemp("plan") / "plan.toml",
            *("--name", NAME, "--listen", listen, "--controller", CONTROLLER),
            *("--strategy", "pipeline", "--replicas", "2", "--stages", "2"),
            *("--context", "4096", "--batch", "8"),
        )
        cluster.apply(plan)
        places: dict[int, list[str]] = {}
        for rank in cluster.status(CONTROLLER, NAME).ranks:
            places.setdefault(int(rank.rank_id[1]), []).append(rank.host)
        assert len(places) == 2
        yield Deployed(cluster=cluster, listen=listen, replica_hosts=places)


@pytest.fixture
def deployed(standing: Deployed) -> Deployed:
    standing.cluster.wait_serving(CONTROLLER, NAME, timeout_s=90.0)
    return standing


def wait_closed(cluster: Cluster) -> None:
    """No fault is open."""
    until(
        lambda: all(fault.healed_at_s for fault in cluster.faults(CONTROLLER)), timeout_s=40.0, what=cluster.diary
    )


def assert_half_went_on(struck: Struck) -> None:
    """One replica of two was struck: its clients were told so, those of the other one noticed nothing."""
    assert struck.silent == []
    assert len(struck.told) == NUM_STREAMS // 2
    assert len(struck.went_on) == NUM_STREAMS // 2


def test_a_killed_rank_is_seen_told_and_healed(deployed: Deployed) -> None:
    cluster = deployed.cluster
    rank = cluster.rank(NAME, deployed.struck_rank)
    generation = cluster.status(CONTROLLER, NAME).generation
    host = next(view.host for view in cluster.status(CONTROLLER, NAME).ranks if view.rank_id == rank.rank_id)
    struck = deployed.strike(lambda: os.kill(rank.pid, signal.SIGKILL), kind="rank_lost", host=host)
    assert struck.detected_s < DETECT_LIMIT_S
    assert struck.fault.evidence["signal"] == "SIGKILL"
    assert_half_went_on(struck)
    assert all("r" in stream.error and "[E8" in stream.error for stream in struck.told)
    status = cluster.status(CONTROLLER, NAME)
    assert status.generation == generation + 1
    wait_closed(cluster)
    assert ask(deployed.listen, NAME)
    newest = cluster.must("history", NAME)["deployments"][NAME][-1]
    assert (newest["generation"], newest["cause"], newest["by"]) == (generation + 1, "healing", CONTROLLER)
    assert newest["reason"].startswith("rank_lost: ")
    assert newest["is_current"]


def test_a_stopped_rank_is_killed_told_and_healed(deployed: Deployed) -> None:
    cluster = deployed.cluster
    rank = cluster.rank(NAME, deployed.struck_rank)
    host = next(view.host for view in cluster.status(CONTROLLER, NAME).ranks if view.rank_id == rank.rank_id)
    struck = deployed.strike(lambda: os.kill(rank.pid, signal.SIGSTOP), kind="rank_hung", host=host)
    assert struck.detected_s < DETECT_LIMIT_S
    assert struck.fault.evidence["hung_because"]
    assert_half_went_on(struck)
    assert not is_running(rank.pid)


def test_a_killed_agent_breaks_no_stream(deployed: Deployed) -> None:
    """Its ranks serve on; the keeper starts it again, and it adopts them."""
    cluster = deployed.cluster
    host = deployed.replica_hosts[deployed.struck_replica][1]
    before = [rank.pid for rank in cluster.children(host, "rank")]
    generation = cluster.status(CONTROLLER, NAME).generation
    struck = deployed.strike(lambda: cluster.kill_agent(host), kind="agent_lost", host=host)
    assert struck.detected_s < DETECT_LIMIT_S
    assert len(struck.went_on) == NUM_STREAMS, [stream.error or stream.broke for stream in struck.streams]
    wait_closed(cluster)
    assert [rank.pid for rank in cluster.children(host, "rank")] == before
    assert cluster.status(CONTROLLER, NAME).generation == generation, "nothing was built anew"


def test_all_agents_killed_at_once_break_no_stream(deployed: Deployed) -> None:
    """The deployment outlives every daemon, and is under its controller again once that is back."""
    cluster = deployed.cluster
    before = {host: [rank.pid for rank in cluster.children(host, "rank")] for host in cluster.hosts}
    generation = cluster.status(CONTROLLER, NAME).generation
    killed = {host: cluster.agent_pid(host) for host in cluster.hosts}
    with streams(deployed.listen, NAME, count=NUM_STREAMS) as running:
        for pid in killed.values():
            os.kill(pid, signal.SIGKILL)
        assert ask(deployed.listen, NAME), "new requests need no agent either"
        for host, pid in killed.items():
            cluster.wait_agent(host, not_pid=pid)
        cluster.wait_serving(CONTROLLER, NAME)
    assert all(stream.went_on for stream in running), cluster.diary()
    assert {host: [rank.pid for rank in cluster.children(host, "rank")] for host in cluster.hosts} == before
    assert cluster.status(CONTROLLER, NAME).generation == generation


def test_agents_that_come_back_late_are_not_taken_for_lost_hosts(deployed: Deployed) -> None:
    """A controller that has just been started knows by their ranks' open ports that such hosts live."""
    cluster = deployed.cluster
    late = deployed.replica_hosts[deployed.struck_replica]
    generation = cluster.status(CONTROLLER, NAME).generation
    with streams(deployed.listen, NAME, count=NUM_STREAMS) as running:
        with contextlib.ExitStack() as stack:
            for host in late:
                # Its keeper must not start the agent again, yet.
                stack.enter_context(stopped(cluster.keeper_pid(host)))
                cluster.kill_agent(host)
            first = cluster.kill_agent(CONTROLLER)
            cluster.wait_agent(CONTROLLER, not_pid=first)
            until(lambda: lost_agents(cluster) >= set(late), timeout_s=40.0, what=cluster.diary)
            assert cluster.status(CONTROLLER, NAME).state == "serving"
        for host in late:
            cluster.wait_agent(host)
        wait_closed(cluster)
    assert all(stream.went_on for stream in running), cluster.diary()
    assert cluster.status(CONTROLLER, NAME).generation == generation, "nothing was built anew"


def lost_agents(cluster: Cluster) -> set[str]:
    """Hosts whose agents are open faults."""
    return {
        fault.host for fault in cluster.faults(CONTROLLER) if fault.kind == "agent_lost" and not fault.healed_at_s
    }


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_killed_controller_breaks_no_stream_and_is_a_fault(deployed: Deployed) -> None:
    """Its members see the silence, or it says itself that it was killed: whoever is first."""
    cluster = deployed.cluster
    cluster.restart_keeper(CONTROLLER)
    cluster.wait_serving(CONTROLLER, NAME)
    struck = deployed.strike(
        lambda: cluster.kill_agent(CONTROLLER),
        kind="agent_lost",
        host=CONTROLLER,
        observers=tuple(cluster.hosts),
    )
    assert struck.detected_s < DETECT_LIMIT_S
    assert len(struck.went_on) == NUM_STREAMS


def test_a_killed_gateway_is_started_again(deployed: Deployed) -> None:
    cluster = deployed.cluster
    (gateway,) = cluster.children(CONTROLLER, "gateway")
    with Asker(deployed.listen, NAME) as asker:
        until(lambda: asker.answers)
        os.kill(gateway.pid, signal.SIGKILL)
        until(lambda: asker.failures, what="a refused request")
        failed_at = float(asker.failures[-1].split(":")[0])
        until(lambda: asker.answers[-1][0] > failed_at, timeout_s=60.0, what=cluster.diary)
    cluster.wait_serving(CONTROLLER, NAME)
    fault = next(fault for fault in cluster.faults(CONTROLLER) if fault.kind == "gateway_lost")
    assert fault.healed_at_s is not None


def test_a_lost_host_degrades_and_heals_by_itself_once_it_is_back(deployed: Deployed) -> None:
    """1. all its processes are killed  2. degraded, with a reason and a way out; the other replica serves on
    3. `odctl bootstrap` brings it back, and nothing else is asked of anybody.
    """
    cluster = deployed.cluster
    host = deployed.replica_hosts[deployed.struck_replica][1]
    struck = deployed.strike(lambda: cluster.kill_host(host), kind="host_lost", host=host, heals=False)
    assert struck.detected_s < DETECT_LIMIT_S
    assert_half_went_on(struck)
    # Links that broke first may be in a rebuild that has to fail before the lost host is all that is left to tell.
    status = cluster.wait_state(CONTROLLER, NAME, "degraded")
    assert host in status.reason
    assert host in status.way_out
    assert ask(deployed.listen, NAME)
    generation = status.generation
    with streams(deployed.listen, NAME, count=2) as survivors:
        cluster.bootstrap(host)
        status = cluster.wait_serving(CONTROLLER, NAME, timeout_s=90.0)
    assert all(stream.went_on for stream in survivors), "the whole replica was left alone"
    assert status.generation > generation
    wait_closed(cluster)
    with streams(deployed.listen, NAME, count=NUM_STREAMS) as running:
        assert len(running) == NUM_STREAMS
    assert all(stream.went_on for stream in running)
