"""The hour of mixed load, scaled to seconds (`make soak` has the whole hour), and a measured load beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.soak import NAME, NUM_CLIENTS, soak, soak_cluster
from tests.integration.cluster import Cluster

SECONDS = 12.0


@pytest.fixture(scope="module")
def deployment() -> Iterator[tuple[Cluster, str]]:
    with soak_cluster() as made:
        yield made


def test_a_deployment_is_measured_by_its_name(deployment: tuple[Cluster, str]) -> None:
    cluster, _ = deployment
    load = ("--requests", "4", "--concurrency", "2", "--prompt", "40", "--output", "5", "--warm-up", "1")
    [server] = cluster.must("bench", NAME, *load)["servers"]
    assert server["label"].startswith(f"{NAME} on h")
    assert server["figures"]["num_answered"] == 4
    assert server["figures"]["mean_output_tokens"] == 5
    refused = cluster.odctl("bench", NAME, "--concurrency", "17")
    assert refused.exit_code == 3
    assert "give the address: odctl bench http://" in refused.stderr


def test_mixed_load_leaves_nothing_behind_and_every_request_ends_clearly(deployment: tuple[Cluster, str]) -> None:
    cluster, listen = deployment
    report = soak(cluster, listen, seconds=SECONDS, tell=lambda _text: None)
    assert report.problems() == []
    assert report.ends["answered"] >= NUM_CLIENTS
    assert report.counted["finished"] >= report.ends["answered"]
    assert report.counted["prefix_hit_tokens"] > 0
