"""`make bench-preview`: what plans predict against what deployments do; writes docs/preview-accuracy.md.

Three clusters of three hosts share this machine: equal shares of a core, unequal ones, and a slow link. On each,
devices and links are probed, and two models are rehearsed and applied in four layouts. A prediction is what stands
in the plan file before it is applied; runs of earlier plans on that cluster have corrected it as they do for any
operator. Then one client asks, and eight at once. Nothing is fitted afterwards.

`make bench-preview CLUSTERS=equal` measures one cluster alone; the document is written once all have been measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from agent.engine.linear.packed import PackedKernel
from agent.planner.file import plan_from_toml
from agent.planner.plan import Plan, rank_places
from agent.telemetry.cpu import cpu_name
from tests.benchmarks.models import Shape, write_random_model
from tests.benchmarks.output import say
from tests.benchmarks.preview_table import (
    FIGURES,
    Case,
    Figures,
    keep_cases,
    kept_cases,
    summary,
    table,
    with_cluster,
    write,
)
from tests.benchmarks.shaped_network import ShapedLink, network_namespace, run_inside
from tests.benchmarks.slow_hosts import slow_host
from tests.benchmarks.stretch import usual_pace_s
from tests.benchmarks.table import commit_now
from tests.integration.cluster import Cluster, free_listen, open_cluster

NAME, GATEWAY = "preview", "h1"
"""The first host decides and speaks to clients, and has no rank: its share is what the others leave."""
PROMPT, ANSWER, BATCH, CONTEXT = 120, 24, 8, 256
"""The load's prompts are a few tokens longer or shorter; kernels that fill rows up fill all of them up to 128."""
SINGLE_REQUESTS, FULL_REQUESTS = 8, 24
MODELS = {
    "wide": Shape(layers=3, hidden=1536, heads=24, kv_heads=8, ffn=3072, vocab=8_000),
    "deep": Shape(layers=8, hidden=512, heads=8, kv_heads=4, ffn=1408, vocab=8_000),
}
LAYOUTS: dict[str, tuple[str, ...]] = {
    "one device": ("--max-hosts", "1"),
    "pipeline 2": ("--strategy", "pipeline", "--stages", "2"),
    "tensor 2": ("--strategy", "tensor", "--tensor", "2"),
    "hybrid 1,2": ("--strategy", "hybrid", "--tensor", "1,2"),
}


def serving_dtype() -> str:
    """bfloat16 where the engine has a kernel for it here, else float32, as an operator would choose."""
    return "bfloat16" if PackedKernel.supports(torch.device("cpu"), torch.bfloat16) else "float32"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    cores: tuple[float, ...]
    """Of a core, for h2, h3, h4."""
    slow_link: tuple[str, str, str] | None = None
    """Two hosts, and a rate as tc writes it."""


# Two thirds of what the machine has: gateway, clients and agents need room beside them.
CONDITIONS = (
    Condition(name="equal", cores=(0.45, 0.45, 0.45)),
    Condition(name="unequal", cores=(0.7, 0.45, 0.3)),
    Condition(name="slow link", cores=(0.45, 0.45, 0.45), slow_link=("h2", "h3", "20mbit")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the tables, keep nothing")
    parser.add_argument("--inside", action="store_true", help="the network namespace is made already")
    parser.add_argument("--clusters", default="", help="names, with commas; all")
    parser.add_argument("--models", default="", help="likewise, and only with --dry-run")
    parser.add_argument("--layouts", default="", help="likewise")
    options = parser.parse_args()
    if (options.models or options.layouts) and not options.dry_run:
        parser.error("a part of a cluster is not kept: say --dry-run, too")
    if os.geteuid() != 0:
        say("a network namespace needs root: nothing measured")
        return 1
    # A stop from outside is to clean up as an interrupt does: the lab inside ends before its namespace.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not options.inside:
        with network_namespace(f"odctl-{NAME}-{os.getpid()}") as enter:
            status, _ = run_inside([*enter, sys.executable, "-m", __spec__.name, "--inside", *sys.argv[1:]])
            return status
    order = [condition.name for condition in CONDITIONS]
    cases = [] if options.dry_run else kept_cases()
    with tempfile.TemporaryDirectory(prefix="odp-") as folder:
        for name, shape in MODELS.items():
            write_random_model(Path(folder) / name, shape)
        for condition in CONDITIONS:
            if condition.name not in _chosen(order, options.clusters):
                continue
            fresh = _measure(
                condition,
                Path(folder),
                models=_chosen(MODELS, options.models),
                layouts=_chosen(LAYOUTS, options.layouts),
            )
            cases = with_cluster(cases, fresh, order=order)
            if not options.dry_run:
                keep_cases(cases)
    text = "\n".join([*_head(cases), *summary(cases), "", *table(cases)])
    sys.stdout.write(text + "\n")
    missing = [name for name in order if name not in {case.condition for case in cases}]
    if missing:
        say(f"the document is left alone until these are measured, too: {', '.join(missing)}")
    elif not options.dry_run:
        write(text)
    return 0


def _head(cases: Sequence[Case]) -> list[str]:
    taken = {case.condition: case.taken for case in cases}
    measured = "; ".join(f"{cluster} {when}" for cluster, when in taken.items())
    return [
        f"{os.cpu_count()} cores. Measured: {measured}. Prompts of {PROMPT} tokens, answers "
        f"of {ANSWER}; time to first token and time per token: one client, medians of {SINGLE_REQUESTS}; "
        f"throughput: {BATCH} clients, {FULL_REQUESTS} requests.",
        "",
    ]


def _chosen(known: Iterable[str], names: str) -> list[str]:
    return [name for name in known if not names or name in names.split(",")]


def _measure(condition: Condition, folder: Path, *, models: Sequence[str], layouts: Sequence[str]) -> list[Case]:
    cases: list[Case] = []
    with open_cluster(num_hosts=1 + len(condition.cores)) as cluster:
        usual_s = usual_pace_s()
        for index, share in enumerate(condition.cores, start=2):
            slow_host(cluster.hosts[f"h{index}"].prefix, share, usual_s=usual_s)
        if condition.slow_link is not None:
            one, other, rate = condition.slow_link
            ShapedLink(cluster.hosts[one].address, cluster.hosts[other].address).set_rate(rate)
        ranks = ",".join(host for host in cluster.hosts if host != GATEWAY)
        say(f"{condition.name}: probing")
        cluster.must("probe", timeout_s=600)  # the gateway's host, too: what it takes for a step hangs on it
        for model in models:
            say(f"{condition.name}: rehearsing {model}")
            cluster.must(
                *("probe", ranks, "--model", str(folder / model), "--dtype", serving_dtype()), timeout_s=900
            )
            files = [folder / f"{model} {layout}.toml" for layout in layouts]
            first = []
            for layout, file in zip(layouts, files, strict=True):
                _plan(cluster, folder / model, file, layout)
                first.append(_measure_case(cluster, condition, file, model, layout))
                say(_told(first[-1]))
            # Once more, as no prediction made then could have known the machine to be now.
            for case, file in zip(first, files, strict=True):
                later, _ = _measure_plan(cluster, file)
                cases.append(msgspec.structs.replace(case, passes=(*case.passes, later)))
                say(_told(cases[-1]))
    return cases


def _plan(cluster: Cluster, model: Path, file: Path, layout: str) -> None:
    """Write the plan's file, of the cluster as it is known now."""
    cluster.plan(
        model,
        file,
        *("--name", NAME, "--listen", free_listen(), "--controller", GATEWAY),
        *("--exclude-device", f"{GATEWAY}/cpu", "--dtype", serving_dtype()),
        *("--context", str(CONTEXT), "--batch", str(BATCH)),
        *("--prompt-tokens", str(PROMPT), "--answer-tokens", str(ANSWER)),
        *LAYOUTS[layout],
    )


def _measure_case(cluster: Cluster, condition: Condition, file: Path, model: str, layout: str) -> Case:
    plan = plan_from_toml(file.read_text(), file=str(file))
    measured, held = _measure_plan(cluster, file)
    predicted = plan.predicted
    return Case(
        taken=f"{time.strftime('%Y-%m-%d', time.gmtime())}, {cpu_name()}, {serving_dtype()}, commit {commit_now()}",
        condition=condition.name,
        model=model,
        layout=layout,
        shape=_shape(plan),
        predicted=(predicted.ttft_s, predicted.time_per_token_s, predicted.tokens_per_s),
        bounds=(predicted.ttft_bounds_s, predicted.time_per_token_bounds_s, predicted.tokens_per_s_bounds),
        passes=(measured,),
        planned_bytes=sum(place.shard.bytes.weights + place.shard.bytes.kv_cache for place in rank_places(plan)),
        held_bytes=held,
        num_runs=predicted.num_measured_runs,
    )


def _measure_plan(cluster: Cluster, file: Path) -> tuple[Figures, int]:
    """What it does, and bytes that its ranks hold."""
    plan = plan_from_toml(file.read_text(), file=str(file))
    listen = plan.serving.listen
    cluster.apply(file)
    status = cluster.wait_serving(GATEWAY, NAME)
    held = sum(view.status.weight_bytes + view.status.kv_cache_bytes for view in status.ranks if view.status)
    measured = _ask(cluster, listen)
    cluster.must("destroy", NAME, "--yes")
    return measured, held


def _ask(cluster: Cluster, listen: str) -> Figures:
    """Eight clients first, then one: the controller keeps the run of many, and the canary's of one."""
    lengths = ("--prompt", str(PROMPT), "--output", str(ANSWER), "--api", "openai", "--timeout", "120")

    def bench(concurrency: int, requests: int) -> Any:
        data = cluster.must(
            *("bench", f"http://{listen}", *lengths),
            *("--concurrency", str(concurrency), "--requests", str(requests)),
            timeout_s=600,
        )
        return data["servers"][0]["figures"]

    many, one = bench(BATCH, FULL_REQUESTS), bench(1, SINGLE_REQUESTS)
    return one["ttft_s"]["p50"], one["tpot_s"]["p50"], many["output_tokens_per_s"]


def _shape(plan: Plan) -> str:
    [replica] = plan.replicas
    return ", ".join(
        f"{'+'.join(shard.host for shard in stage.shards)} {stage.layers[1] - stage.layers[0]}"
        for stage in replica.stages
    )


def _told(case: Case) -> str:
    """What the last pass showed."""
    last = case.passes[-1]
    errors = ", ".join(
        f"{name} {last[index]:.4g} for {case.predicted[index]:.4g} ({case.predicted[index] / last[index] - 1:+.0%})"
        for index, name in enumerate(FIGURES)
    )
    return f"{case.condition}, {case.model}, {case.layout} ({case.shape}): {errors}; {case.num_runs} runs"


if __name__ == "__main__":
    sys.exit(main())
