"""The hour of mixed load, scaled to seconds: `make soak` has the whole hour."""

from __future__ import annotations

from tests.benchmarks.soak import NUM_CLIENTS, soak, soak_cluster

SECONDS = 12.0


def test_mixed_load_leaves_nothing_behind_and_every_request_ends_clearly() -> None:
    with soak_cluster() as (cluster, listen):
        report = soak(cluster, listen, seconds=SECONDS, tell=lambda _text: None)
    assert report.problems() == []
    assert report.ends["answered"] >= NUM_CLIENTS
    assert report.counted["finished"] >= report.ends["answered"]
    assert report.counted["prefix_hit_tokens"] > 0
