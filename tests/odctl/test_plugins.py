"""Strategies of other distributions: real ones, with metadata as an installer leaves it, on sys.path."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agent.errors import FleetError
from agent.planner.check import check_plan
from agent.planner.file import plan_from_toml, plan_to_toml
from agent.planner.make import make_plan
from agent.planner.plan import Objective, Serving
from odctl.cli import main
from odctl.plugins import load_strategies, strategy_names
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_70B, THREE_CPUS, cluster, gpu, host, link, request
from tests.odctl.plugins import HALVES, write_distribution

WIDE = """
from agent.planner.layout import Layout, StageLayout

class Wide:
    name = "wide"

    def propose(self, problem):
        count, places = problem.spec.num_layers, problem.places
        if len(places) < 16:
            return []
        cuts = ((0, count // 2, places[:8]), (count // 2, count, places[8:16]))
        return [Layout(stages=tuple(
            StageLayout(layers=(first, end), places=group, units=(1,) * 8) for first, end, group in cuts
        ))]
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one entry point onto sys.path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(
        source: str, *, name: str = "halves", distribution: str = "odctl-halves", target: str = "Halves"
    ) -> None:
        write_distribution(tmp_path, source, name=name, distribution=distribution, target=target)
        importlib.invalidate_caches()

    return put


def test_a_plugin_s_strategy_is_planned_by_its_name_and_recorded(install: Install) -> None:
    install(HALVES)
    asked = request(LLAMA_1B, THREE_CPUS, objective=Objective(strategy="halves"), plugins=load_strategies("halves"))
    plan = make_plan(asked)
    stages = plan.replicas[0].stages
    assert [(stage.layers, stage.shards[0].host) for stage in stages] == [((0, 8), "c"), ((8, 16), "a")]
    assert plan.objective.strategy == "halves"
    assert plan_from_toml(plan_to_toml(plan), file="plan.toml") == plan
    assert check_plan(plan, LLAMA_1B, THREE_CPUS) == [], "who reads it needs no plugin"


def test_a_plugin_competes_under_adaptive_and_the_plan_says_so_where_it_wins(install: Install) -> None:
    """Eighteen hosts of small cards: ours try no groups across so many, and one group alone holds too little."""
    install(WIDE, name="wide", target="Wide")
    names = [f"h{index:02}" for index in range(18)]
    links = tuple(link(a, b, latency_s=5e-6, bytes_per_s=12e9) for a, b in itertools.combinations(names, 2))
    facts = cluster(*(host(name, gpu(0, "T4", 16)) for name in names), links=links)
    asked = request(LLAMA_70B, facts, serving=Serving(trusted_network=True))
    ours, both = make_plan(asked), make_plan(msgspec.structs.replace(asked, plugins=load_strategies("adaptive")))
    assert [stage.tensor_parallel_size for stage in both.replicas[0].stages] == [8, 8]
    assert both.predicted.time_per_token_s < 0.5 * ours.predicted.time_per_token_s
    assert both.objective.strategy == "adaptive"
    assert "this layout was proposed by the plugin strategy `wide`" in both.why
    assert check_plan(both, LLAMA_70B, facts) == []


def test_a_plugin_that_is_beaten_changes_nothing(install: Install) -> None:
    install(HALVES)
    asked = request(LLAMA_1B, THREE_CPUS)
    assert make_plan(msgspec.structs.replace(asked, plugins=load_strategies("adaptive"))) == make_plan(asked)


def test_names_are_listed_without_an_import(install: Install, tmp_path: Path) -> None:
    install("raise RuntimeError('imported')\n")
    assert strategy_names() == ("adaptive", "pipeline", "tensor", "hybrid", "halves")
    script = (
        "import sys\nfrom odctl.cli import main\n"
        "try:\n    main(['plan', '--help'])\nexcept SystemExit as done:\n    assert not done.code\n"
        "print([name for name in ('numpy', 'asyncssh', 'agent.planner.make') if name in sys.modules])"
    )
    path = [str(tmp_path), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True,
        env={"PYTHONPATH": ":".join(path)},
    )  # fmt: skip
    assert "[adaptive|pipeline|tensor|hybrid|halves]" in done.stdout
    assert done.stdout.rstrip().endswith("[]"), "help imports nothing heavy"


def test_an_unknown_strategy_is_refused_with_the_names() -> None:
    done = CliRunner().invoke(main, ["plan", "m", "--strategy", "halve"])
    assert done.exit_code == 2
    assert "'halve' is not one of 'adaptive', 'pipeline', 'tensor', 'hybrid'" in done.output
    with pytest.raises(FleetError, match="no strategy `halve`") as refused:
        make_plan(request(LLAMA_1B, THREE_CPUS, objective=Objective(strategy="halve")))
    assert refused.value.code == "E106"


@pytest.mark.parametrize(
    ("source", "options", "part"),
    [
        ("import nowhere_to_be_found\n", {}, "cannot be imported: ModuleNotFoundError: No module named 'nowhere"),
        (HALVES, {"target": "Thirds"}, "cannot be imported: AttributeError: "),
        (HALVES, {"name": "tensor"}, "`tensor` is a strategy of odctl's own"),
        (HALVES, {"name": "Halves!"}, "a strategy's name is a lower-case letter"),
        (HALVES, {"name": "thirds"}, "Halves.name is 'halves', and must be 'thirds'"),
        ("class Halves:\n    name = 'halves'\n", {}, "Halves has no method propose(problem)"),
        (
            "class Halves:\n    name = 'halves'\n    def propose(self): ...\n",
            {},
            "propose() must take one argument",
        ),
    ],
)
def test_a_plugin_that_is_none_is_named(install: Install, source: str, options: dict[str, str], part: str) -> None:
    install(source, **options)
    with pytest.raises(FleetError) as refused:
        load_strategies("adaptive")
    assert refused.value.code == "E119"
    assert part in refused.value.message
    assert "of odctl-halves (odctl.strategies)" in refused.value.message
    assert load_strategies("pipeline") == (), "the way out that the hint names"


def test_two_plugins_of_one_name_are_both_named(install: Install) -> None:
    install(HALVES)
    install(HALVES, distribution="other-halves")
    with pytest.raises(FleetError, match=r"of other-halves .*its name is taken by .* of odctl-halves"):
        load_strategies("halves")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("(count // 2, count)", "(count // 2, count - 1)"), "its stages end at layer 15 of 16"),
        (("(0, count // 2)", "(1, count // 2)"), "stage 0 holds layers [1, 8], and the one before it ends at 0"),
        (("problem.places[-1], problem.places[0]", "(problem.places[0],) * 2"), "a/cpu stands in it twice"),
        (("(problem.spec.num_kv_heads,)", "(1,)"), "stage 0 shares its 8 KV heads [1]"),
        (("return [Layout(", "return [tuple("), "it failed to propose: TypeError: "),
        (("return [Layout(", "return [dict("), "it is a dict, not an agent.planner.layout.Layout"),
    ],
)
def test_what_a_plugin_proposes_is_held_against_the_model(
    install: Install, change: tuple[str, str], part: str
) -> None:
    install(HALVES.replace(*change))
    asked = request(LLAMA_1B, THREE_CPUS, plugins=load_strategies("adaptive"))
    with pytest.raises(FleetError) as refused:
        make_plan(asked)
    assert refused.value.code == "E119"
    assert part in refused.value.message


def test_what_does_not_fit_or_breaks_a_limit_is_left_out(install: Install) -> None:
    install(HALVES)
    asked = request(LLAMA_1B, THREE_CPUS, objective=Objective(strategy="halves"), plugins=load_strategies("halves"))
    with pytest.raises(FleetError) as refused:
        make_plan(msgspec.structs.replace(asked, min_hosts=3))
    assert refused.value.code == "E602"
    with pytest.raises(FleetError) as refused:
        make_plan(msgspec.structs.replace(asked, excluded=("a", "b/cpu")))
    assert refused.value.code == "E602"
