"""`odctl bench` as an operator runs it: against a real gateway with stand-in ranks, and against trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import FleetError
from odctl.bench.trace_file import read_trace
from odctl.commands.bench import settings_of
from tests.agent.api.rig import Rig, open_rig, wait_until

SMALL = ("--requests", "4", "--prompt", "60", "--output", "6", "--warm-up", "1", "--seed", "7")


@pytest.fixture(scope="module")
def serving_rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="gw-") as directory, open_rig(Path(directory)) as shared:
        shared.serve()
        yield shared


def argv(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "odctl", "bench", *arguments]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(*arguments), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("api", ["openai", "ollama"])
def test_a_gateway_is_measured_through_either_api(serving_rig: Rig, api: str) -> None:
    before = serving_rig.backend()
    done = bench(serving_rig.base_url, "--api", api, *SMALL, "--concurrency", "2", "--json")
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    [server] = data["servers"]
    found = server["figures"]
    assert (found["num_answered"], found["errors"], found["num_short"]) == (4, {}, 0)
    assert found["mean_output_tokens"] == 6
    assert found["mean_prompt_tokens"] == pytest.approx(60, abs=14)
    assert 0 < found["ttft_s"]["p50"] <= found["ttft_s"]["largest"] < found["elapsed_s"]
    after = serving_rig.backend()
    assert after.finished - before.finished == 4 + 1 + 2  # warm-up, and two requests to learn how it counts
    assert after.generated_tokens - before.generated_tokens == 6 * 5 + 2


def test_the_text_names_every_figure(serving_rig: Rig) -> None:
    done = bench(serving_rig.base_url.removeprefix("http://"), *SMALL, "--slo-ttft", "60000", "--rate", "50")
    assert done.returncode == 0, done.stderr
    assert "50 a second, Poisson; prompts of 60 tokens, answers of 6; seed 7" in done.stdout
    assert "4 requests answered in" in done.stdout
    for name in ("time to first token", "time per token", "gap between pieces", "whole request", "throughput"):
        assert f"\n  {name} " in done.stdout
    assert "100% of all (first token within 60.00 s)" in done.stdout


def test_two_servers_are_compared_in_alternation(serving_rig: Rig) -> None:
    done = bench(serving_rig.base_url, "--against", serving_rig.base_url, "--against-api", "ollama", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "output tokens/s" in done.stdout
    assert "more is better, 5 rounds" in done.stdout
    assert done.stderr.count("round ") == 10


def test_an_interrupt_prints_what_was_measured_so_far(serving_rig: Rig) -> None:
    before = serving_rig.backend().finished
    running = subprocess.Popen(
        argv(serving_rig.base_url, "--duration", "600", "--prompt", "60", "--output", "8", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: serving_rig.backend().finished > before + 8, "some answers")
        os.kill(running.pid, signal.SIGINT)
        stdout, stderr = running.communicate(timeout=20)
    finally:
        running.kill()
    assert running.returncode == 130, stderr
    data = json.loads(stdout)["data"]
    assert data["is_interrupted"]
    assert data["servers"][0]["figures"]["num_answered"] >= 3


def test_a_model_that_is_not_there_fails_with_the_servers_words(serving_rig: Rig) -> None:
    done = bench(serving_rig.base_url, "--model", "another", *SMALL)
    assert done.returncode == 1
    assert done.stderr.startswith("error[E808]")
    assert "another" in done.stderr


def test_an_address_where_nobody_listens_is_told() -> None:
    done = bench("127.0.0.1:9", *SMALL)
    assert done.returncode == 1
    assert done.stderr.startswith("error[E808]: http://127.0.0.1:9: ")


@pytest.mark.parametrize(
    "options",
    [{"prompt": "0"}, {"output": "many"}, {"requests": 0}, {"rate": 0.0}, {"rounds": 0}, {"warm_up": -1}],
)
def test_an_impossible_load_is_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(FleetError) as refusal:
        settings_of(is_against=False, **options)
    assert refusal.value.code == "E118"


def test_a_load_without_a_seed_is_another_each_time_and_says_which() -> None:
    seeds = {settings_of(is_against=False).load.seed for _ in range(8)}
    assert len(seeds) > 1
    assert settings_of(is_against=False, seed=5).load.seed == 5


def test_a_rate_means_that_nobody_waits_and_without_one_clients_do() -> None:
    assert settings_of(is_against=False).load.arrivals == "closed"
    load = settings_of(is_against=False, rate=3.0, arrivals="fixed").load
    assert (load.arrivals, load.rate_per_s) == ("fixed", 3.0)
    assert load.concurrency > 1000


def test_a_run_is_recorded_as_a_trace_and_a_trace_is_asked_again(serving_rig: Rig, tmp_path: Path) -> None:
    recorded, again = tmp_path / "run.jsonl", tmp_path / "again.jsonl"
    load = ("--requests", "6", "--rate", "40", "--prompt", "60..80", "--output", "6", "--shared-prefix", "32")
    done = bench(serving_rig.base_url, *load, "--warm-up", "0", "--seed", "7", "--record", str(recorded))
    assert done.returncode == 0, done.stderr
    first = read_trace(str(recorded))
    assert len(first) == 6
    assert {(each.output_tokens, each.prefix_group, each.prefix_tokens) for each in first} == {(6, "shared", 32)}
    assert all(each.ttft_s is not None and each.ttft_s > 0 for each in first)
    done = bench(serving_rig.base_url, "--trace", str(recorded), "--seed", "7", "--record", str(again), "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    assert data["settings"]["load"]["trace"] == 6
    assert data["servers"][0]["figures"]["num_answered"] == 6
    second = read_trace(str(again))
    assert [each.prompt_tokens for each in second] == pytest.approx([each.prompt_tokens for each in first], abs=14)
    assert second[-1].arrival_s == pytest.approx(first[-1].arrival_s, abs=0.5)


def test_a_trace_that_is_none_exits_3_with_its_place(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"arrival_s": 0, "prompt_tokens": 0, "output_tokens": 1}\n')
    done = bench("http://127.0.0.1:9", "--trace", str(trace))
    assert done.returncode == 3
    assert "`prompt_tokens` is 0: from 1 to 1000000 are possible" in done.stderr
    assert f"--> {trace}:1:35" in done.stderr
