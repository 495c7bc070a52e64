from __future__ import annotations

import msgspec
import pytest

from agent.facts.cluster import ClusterFacts
from agent.planner.plan import Plan, rank_places
from agent.planner.risk import risk_of
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for


def labelled(**racks: str) -> ClusterFacts:
    hosts = tuple(
        msgspec.structs.replace(host, labels={"rack": racks[host.name]} if host.name in racks else {})
        for host in THREE_CPUS.hosts
    )
    return msgspec.structs.replace(THREE_CPUS, hosts=hosts)


@pytest.fixture(scope="module")
def replicas() -> Plan:
    """One on each host; the gateway is on a."""
    return plan_for(LLAMA_1B, THREE_CPUS, replicas=3)


def test_every_host_of_a_single_replica_stops_it() -> None:
    assert risk_of(plan_for(LLAMA_1B, THREE_CPUS, stages=3), None).fatal_hosts == ("a", "b", "c")


def test_of_several_replicas_only_the_gateways_host_stops_it(replicas: Plan) -> None:
    assert replicas.gateway_host == "a"
    assert risk_of(replicas, None).fatal_hosts == ("a",)


def test_a_fault_domain_that_all_replicas_touch_stops_it(replicas: Plan) -> None:
    risk = risk_of(replicas, labelled(a="north", b="south", c="south"))
    assert risk.fatal_domains == {"rack": ("north",)}, "the gateway's"
    assert risk_of(replicas, labelled(b="south", c="south")).fatal_domains == {}


def test_the_least_room_is_what_the_fullest_device_has_left(replicas: Plan) -> None:
    room = risk_of(replicas, THREE_CPUS).least_room
    assert room is not None
    usable = {host.name: host.devices[0].usable_bytes for host in THREE_CPUS.hosts}
    left = {place.shard.host: usable[place.shard.host] - place.shard.bytes.total for place in rank_places(replicas)}
    assert room.bytes_left == min(left.values())
    assert room.fraction_left == pytest.approx(room.bytes_left / usable[room.device.partition("/")[0]])
    assert room.left.low < room.left.expected == room.bytes_left < room.left.high
    assert risk_of(replicas, None).least_room is None
