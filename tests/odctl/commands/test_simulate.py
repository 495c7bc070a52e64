"""`odctl simulate`: bad input through the command, and figures from plan, spec and facts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.errors import FleetError
from agent.planner.file import plan_to_toml
from agent.simulation.trace import TraceRequest, trace_text
from odctl.cli import main
from odctl.commands.simulate import load_of, simulate_plan
from odctl.result import render
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, cluster, cpu, host, plan_for

PLAN = plan_for(LLAMA_1B, THREE_CPUS, stages=2)


@pytest.fixture
def plan_path(tmp_path: Path) -> str:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(PLAN))
    return str(path)


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["simulate", *arguments])
    assert done.exit_code == 3, done.output
    return done.stderr


def test_a_bad_trace_is_told_by_line_and_value(plan_path: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0.5,64,8\n1.0,sixty,8\n")
    told = refused(plan_path, "--trace", str(trace))
    assert 'error[E105]: `prompt_tokens` is "sixty", which is no number of tokens' in told
    assert f"--> {trace}:3:5" in told
    assert "No such file" in refused(plan_path, "--trace", str(tmp_path / "none.csv"))
    trace.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refused(plan_path, "--trace", str(trace))


def test_arrivals_are_said_once(plan_path: str, tmp_path: Path) -> None:
    assert "nothing says when requests come" in refused(plan_path)
    trace = tmp_path / "trace.jsonl"
    trace.write_text(trace_text([TraceRequest(arrival_s=0.0, prompt_tokens=8, output_tokens=2)]))
    assert "--trace and --rate" in refused(plan_path, "--trace", str(trace), "--rate", "2")
    assert "0 requests/s" in refused(plan_path, "--rate", "0")
    assert "plan.toml" in refused(plan_path + ".none", "--rate", "1")


def test_the_same_input_gives_the_same_bytes_and_every_figure() -> None:
    def text(seed: int) -> str:
        load, objectives = load_of(
            rate=0.5, requests=40, prompt="32..64", seed=seed, slo_ttft=2000.0, slo_tpot=100.0
        )
        return render(simulate_plan(PLAN, LLAMA_1B, THREE_CPUS, load=load, objectives=objectives), as_json=True)

    assert text(1) == text(1)
    assert text(1) != text(2)
    data = json.loads(text(1))["data"]
    found = data["figures"]
    assert found["num_answered"] == 40
    assert 0 < found["ttft_s"]["p50"] <= found["ttft_s"]["p95"] <= found["ttft_s"]["p99"]
    assert found["goodput_per_s"] <= found["requests_per_s"]
    [replica] = data["replicas"]
    assert replica["steps"] > 0
    assert 0 < replica["peak_blocks"] <= replica["blocks"]
    assert [0 < stage["busy_share"] < 1 for stage in replica["stages"]] == [True, True]
    assert data["calibration"] is None
    assert data["measured"] is None


def test_the_text_says_what_it_is_and_sets_a_recorded_run_beside_it(tmp_path: Path) -> None:
    recorded = tuple(
        TraceRequest(arrival_s=float(index), prompt_tokens=40, output_tokens=8, ttft_s=0.4, tpot_s=0.1)
        for index in range(20)
    )
    path = tmp_path / "run.jsonl"
    path.write_text(trace_text(recorded))
    load, objectives = load_of(trace=str(path), slo_ttft=500.0)
    plain = simulate_plan(PLAN, LLAMA_1B, THREE_CPUS, load=load, objectives=objectives)
    assert plain.prose.startswith("simulated, not measured: the cost model as it is")
    assert "a trace of 20 requests in 19.0 s" in plain.prose
    assert "KV cache: " in plain.prose
    assert "goodput" in plain.prose
    assert plain.data["measured"].ttft_s.p50 == pytest.approx(0.4)
    fitted = simulate_plan(PLAN, LLAMA_1B, THREE_CPUS, load=load, objectives=objectives, measured=recorded)
    assert "the cost model fitted to 20 measured requests" in fitted.prose
    assert fitted.data["calibration"].error_after < fitted.data["calibration"].error_before


def test_a_plan_that_could_not_be_applied_is_refused_and_a_stale_one_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load, objectives = load_of(rate=1.0, requests=2)
    small = cluster(host("a", cpu(1)), host("b", cpu(1)), host("c", cpu(1)))
    with pytest.raises(FleetError) as refusal:
        simulate_plan(PLAN, LLAMA_1B, small, load=load, objectives=objectives)
    assert refusal.value.code == "E601"
    grown = cluster(host("a", cpu(96)), host("b", cpu(96)), host("c", cpu(96)))
    simulate_plan(PLAN, LLAMA_1B, grown, load=load, objectives=objectives)
    assert "warning: " in capsys.readouterr().err


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from odctl.cli import main\n"
        "try: main(['simulate', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('numpy', 'torch', 'tokenizers', 'asyncssh', 'agent.serving')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
