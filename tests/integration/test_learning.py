"""What applied plans do is measured, journalled, shown by `odctl strategies`, and told by the next plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.clients import ask
from tests.integration.cluster import free_listen, open_cluster, until

NAME = "learner"
COMMON = ("--name", NAME, "--context", "512", "--controller", "h1")
LAYOUTS = {
    "pipeline 2": ("--strategy", "pipeline", "--stages", "2"),
    "tensor 2": ("--strategy", "tensor", "--tensor", "2"),
}
REQUESTS = 3


def test_two_applied_plans_are_shown_with_what_was_measured_and_advise_the_next(
    endless_model: Path, tmp_path: Path
) -> None:
    """1. a pipeline serves some requests 2. so does a tensor-parallel pair 3. both are shown 4. a plan says so"""
    listen = free_listen()
    with open_cluster(num_hosts=2) as cluster:

        def rows() -> dict[str, Any]:
            found = cluster.must("strategies")["strategies"]
            return {row["arm"]: row for row in found}

        for arm, options in LAYOUTS.items():
            plan = cluster.plan(endless_model, tmp_path / "plan.toml", *COMMON, "--listen", listen, *options)
            cluster.apply(plan)
            for _ in range(REQUESTS):
                ask(listen, NAME, num_predict=24)
            until(lambda: rows().get(arm, {}).get("executions", 0) >= REQUESTS, timeout_s=30, what=rows)  # noqa: B023

        found = rows()
        for arm in LAYOUTS:
            row = found[arm]
            assert row["success"] == 1.0
            assert 0 < row["time_per_token_s"] < 1
            assert row["ttft_s"] > 0
            assert row["tokens_per_s"] > 0
            assert row["error"] == row["time_per_token_s"] / row["predicted_s"] - 1
        assert min(row["regret"] for row in found.values()) == 0

        history = cluster.must("strategies", "--history")["history"]
        assert [each["chosen"]["arm"] for each in history] == list(LAYOUTS)
        assert all(each["outcome"]["time_per_token_s"] > 0 for each in history)
        told = cluster.odctl("strategies", "--history").stdout
        assert "pipeline 2" in told
        assert "measured" in told

        cluster.plan(endless_model, tmp_path / "next.toml", *COMMON, "--listen", listen, "--min-hosts", "2")
        assert "learnt from" in (tmp_path / "next.toml").read_text()
        cluster.must("destroy", NAME, "--yes")
