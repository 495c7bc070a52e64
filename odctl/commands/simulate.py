"""`odctl simulate plan.toml`: serve a trace on a virtual clock before a plan is applied, and print the figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from agent.facts.cluster import ClusterFacts
    from agent.facts.model import ModelSpec
    from agent.planner.plan import Plan
    from agent.simulation.calibrate import Fit
    from agent.simulation.result import Simulation
    from agent.simulation.trace import TraceRequest
    from odctl.bench.load import Load
    from odctl.bench.measure import Figures, Objectives, Outcome
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory

DEFAULT_REQUESTS = 200


@click.command("simulate")
@click.argument("plan_path", metavar="PLAN", type=click.Path(dir_okay=False))
@click.option(
    "--trace",
    default="",
    type=click.Path(dir_okay=False),
    help="Requests as a file says: JSON lines or CSV with arrival_s, prompt_tokens, output_tokens.",
)
@click.option("--rate", type=float, default=None, help="Requests a second, instead of a trace.")
@click.option("--arrivals", type=click.Choice(["fixed", "poisson"]), default="poisson", show_default=True)
@click.option("--prompt", default="128", show_default=True, help="Tokens: 128, 64..256 or normal:128:32.")
@click.option("--output", default="64", show_default=True, help="Tokens, likewise.")
@click.option("--shared-prefix", type=int, default=0, help="First tokens that all prompts have in common.")
@click.option(
    "--requests", type=int, default=None, help=f"How many. Default: {DEFAULT_REQUESTS}, or all of a trace."
)
@click.option(
    "--repetition",
    type=click.FloatRange(0.0, 0.99),
    default=0.0,
    show_default=True,
    help="Chance that a token goes on in what the prompt says: what plans that guess find.",
)
@click.option(
    "--acceptance",
    type=click.FloatRange(0.0, 1.0),
    default=0.7,
    show_default=True,
    help="Chance that a draft model's guess is right, where the plan has one.",
)
@click.option("--slo-ttft", "--ttft-slo", type=float, metavar="MS", help="Goodput: first token within so many ms.")
@click.option("--slo-tpot", "--tpot-slo", type=float, metavar="MS", help="Goodput: at most so many ms per token.")
@click.option(
    "--calibrate",
    default="",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Fit the cost model to a run of this plan that `odctl bench --record` wrote.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of lengths, arrivals and repetition.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, /, as_json: bool, plan_path: str, **options: Any) -> None:
    """Simulate PLAN under a load: its scheduler as it serves, and the cost model in the engine's place.

    Hosts are asked for their facts and nothing else; none of them computes.
    """
    run_command(lambda: simulate(inventory_path, plan_path, **options), as_json=as_json)


def simulate(
    inventory_path: str,
    plan_path: str,
    *,
    calibrate: str = "",
    repetition: float = 0.0,
    acceptance: float = 0.7,
    **options: Any,
) -> Result:
    """Raises E101 to E107 for a plan or trace that is none, E118 for a load that cannot be, E2xx when a host of the
    plan does not answer, E402 and E6xx for a plan that could not be applied.
    """
    from odctl.apply import read_facts
    from odctl.bench.trace_file import read_trace
    from odctl.commands.show import load_plan
    from odctl.model_source import check_model
    from odctl.session import visit_fleet

    plan = load_plan(Path(plan_path))
    load, objectives = load_of(**options)
    measured = read_trace(calibrate) if calibrate else ()

    async def look(fleet: Fleet, inventory: Inventory) -> tuple[ClusterFacts, ModelSpec, ModelSpec | None]:
        facts, missing = await read_facts(fleet, inventory.cluster)
        for host in plan.hosts:
            if host in missing:
                raise missing[host]
        draft = (await check_model(fleet, plan.draft)).spec if plan.draft is not None else None
        return facts, (await check_model(fleet, plan.model)).spec, draft

    refs = [plan.model, *([plan.draft] if plan.draft is not None else [])]

    def hosts_of_plan(inventory: Inventory) -> list[str]:
        wanted = sorted({*plan.hosts, *(ref.source_host for ref in refs)} - {""})
        return [inventory.host(name).name for name in wanted]

    facts, spec, draft = visit_fleet(inventory_path, look, hosts=hosts_of_plan)
    return simulate_plan(
        plan,
        spec,
        facts,
        load=load,
        objectives=objectives,
        measured=measured,
        repetition=repetition,
        acceptance=acceptance,
        draft=draft,
    )


def load_of(
    *,
    trace: str = "",
    rate: float | None = None,
    arrivals: str = "poisson",
    prompt: str = "128",
    output: str = "64",
    shared_prefix: int = 0,
    requests: int | None = None,
    slo_ttft: float | None = None,
    slo_tpot: float | None = None,
    seed: int = 0,
) -> tuple[Load, Objectives]:
    """Raises E118 naming what is out of bounds, and when nothing or two things say when requests come."""
    from agent.errors import FleetError
    from odctl.commands.bench import settings_of

    if not trace and rate is None:
        raise FleetError(
            "E118", "nothing says when requests come", hint="--rate 2 for two a second, or --trace FILE"
        )
    settings = settings_of(
        is_against=False,
        requests=DEFAULT_REQUESTS if requests is None and not trace else requests,
        rate=rate,
        arrivals=arrivals,
        trace=trace,
        prompt=prompt,
        output=output,
        shared_prefix=shared_prefix,
        slo_ttft=slo_ttft,
        slo_tpot=slo_tpot,
        seed=seed,
    )
    return settings.load, settings.objectives


def simulate_plan(
    plan: Plan,
    spec: ModelSpec,
    facts: ClusterFacts,
    *,
    load: Load,
    objectives: Objectives,
    measured: tuple[TraceRequest, ...] = (),
    repetition: float = 0.0,
    acceptance: float = 0.7,
    draft: ModelSpec | None = None,
) -> Result:
    """A pure function of its arguments but for warnings on stderr. Raises E106, E107, E118, E601."""
    from agent.planner.check import check_plan, raise_problems
    from agent.planner.cost import PipelineTimes
    from agent.planner.layout import layouts_of_plan
    from agent.planner.rates import LinkTable
    from agent.planner.step_shape import StepShape
    from agent.simulation.calibrate import calibrate
    from agent.simulation.simulator import simulate as run
    from agent.simulation.step_times import Calibration, StepCosts, drafting_of
    from odctl.bench.load import trace_of

    problems = check_plan(plan, spec, facts, draft=draft)
    raise_problems([each for each in problems if each.code != "E401"])
    for each in problems:
        sys.stderr.write(f"warning: {each.message}\n")
    layouts = layouts_of_plan(plan, facts)
    links = LinkTable(facts, is_network_trusted=plan.serving.trusted_network)
    known: list[dict[StepShape, PipelineTimes]] = [{} for _ in layouts]

    drafting = drafting_of(plan, acceptance=acceptance)

    def serve(trace: tuple[TraceRequest, ...], calibration: Calibration) -> Simulation:
        costs = [
            StepCosts(spec, layout, plan.serving, links=links, calibration=calibration, known=times)
            for layout, times in zip(layouts, known, strict=True)
        ]
        return run(
            trace,
            plan.serving,
            costs,
            seed=load.seed,
            repetition=repetition,
            calibration=calibration,
            drafting=drafting,
        )

    fit = calibrate(measured, lambda calibration: serve(measured, calibration)) if measured else None
    trace = trace_of(load)
    simulation = serve(trace, fit.calibration if fit else Calibration())
    return _result(plan, load, objectives, trace=trace, simulation=simulation, fit=fit)


def _result(
    plan: Plan,
    load: Load,
    objectives: Objectives,
    *,
    trace: tuple[TraceRequest, ...],
    simulation: Simulation,
    fit: Fit | None,
) -> Result:
    import msgspec

    from agent.planner.file import plan_hash
    from odctl.bench.measure import figures
    from odctl.bench.report import figures_text, load_line

    digest = plan_hash(plan)
    found = figures(_outcomes(simulation), elapsed_s=simulation.elapsed_s, objectives=objectives)
    measured = _measured(trace, objectives)
    parts = [
        f"simulated, not measured: {_calibration_words(fit)}\n{load_line(load)}",
        figures_text(f"plan {digest[:12]}", found, objectives),
        "\n".join(_use_lines(simulation, guesses=plan.serving.speculation != "none")),
    ]
    if measured is not None:
        parts.append(_beside(found, measured))
    load_data = msgspec.to_builtins(load) | {"trace": len(load.trace)}
    data = {
        "plan_hash": digest,
        "load": load_data,
        "objectives": objectives,
        "calibration": fit,
        "figures": found,
        "measured": measured,
        "mean_queued": simulation.mean_queued,
        "peak_queued": simulation.peak_queued,
        "replicas": simulation.replicas,
    }
    return Result(kind="simulation", data=data, prose="\n\n".join(parts))


def _outcomes(simulation: Simulation) -> list[Outcome]:
    """As a load generator would have seen them."""
    from odctl.bench.measure import Outcome

    return [
        Outcome(
            index=each.index,
            sent_s=each.arrived_s,
            end_s=each.token_s[-1] if each.token_s else each.arrived_s,
            piece_s=each.token_s,
            prompt_tokens=each.prompt_tokens,
            output_tokens=len(each.token_s),
            wanted_output_tokens=each.wanted_output_tokens,
            error=each.refusal,
            detail=_REFUSALS.get(each.refusal, ""),
        )
        for each in simulation.requests
    ]


_REFUSALS = {
    "queue full": "as many wait as the plan's `serving.queue` says",
    "too long": "the prompt leaves no room for a token in the plan's context",
}


def _measured(trace: tuple[TraceRequest, ...], objectives: Objectives) -> Figures | None:
    """Of a trace that a run recorded: what was measured then. None where it says too little."""
    from odctl.bench.measure import Outcome, figures

    outcomes = []
    for index, each in enumerate(trace):
        if each.ttft_s is None:
            return None
        first_s = each.arrival_s + each.ttft_s
        end_s = first_s + (each.tpot_s or 0.0) * (each.output_tokens - 1)
        outcomes.append(
            Outcome(
                index=index,
                sent_s=each.arrival_s,
                end_s=end_s,
                # An answer that came in one piece has no time per token in the trace.
                piece_s=(first_s,) if each.tpot_s is None else (first_s, end_s),
                prompt_tokens=each.prompt_tokens,
                output_tokens=each.output_tokens,
                wanted_output_tokens=each.output_tokens,
            )
        )
    elapsed_s = max(each.end_s for each in outcomes)
    return figures(outcomes, elapsed_s=elapsed_s, objectives=objectives)


def _calibration_words(fit: Fit | None) -> str:
    if fit is None:
        return "the cost model as it is; --calibrate FILE fits it to a run"
    by = fit.calibration
    return (
        f"the cost model fitted to {fit.num_measured} measured requests (decode x {by.decode:.2f}, prefill x "
        f"{by.prefill:.2f}, {by.row_s * 1e6:.0f} µs a row, {by.request_s * 1e3:.1f} ms a request, jitter "
        f"{by.jitter:.2f}; off by {_percent(fit.error_before)} before, {_percent(fit.error_after)} after)"
    )


def _percent(log_error: float) -> str:
    import math

    return f"{math.exp(log_error) - 1:.0%}"


def _use_lines(simulation: Simulation, *, guesses: bool) -> list[str]:
    lines = [f"  queue       {simulation.mean_queued:.1f} requests on average, {simulation.peak_queued} at most"]
    for index, replica in enumerate(simulation.replicas):
        lines.append(
            f"  replica {index}   {replica.steps} steps of {replica.mean_rows:.1f} rows; KV cache: "
            f"{replica.peak_blocks} of {replica.blocks} blocks held at most, {replica.mean_blocks:.0f} on average; "
            f"{replica.preemptions} preemptions; {replica.prefix_hit_tokens} tokens found computed"
        )
        if guesses:
            lines.append(f"              {replica.drafts_accepted} of {replica.drafts_proposed} guesses were right")
        lines += [
            f"    stage {number}   busy {stage.busy_share:4.0%}, waits {stage.bubble:4.0%} of the time with steps "
            f"under way   {stage.name}"
            for number, stage in enumerate(replica.stages)
        ]
    return lines


def _beside(simulated: Figures, measured: Figures) -> str:
    """What the trace's run measured beside what was simulated, and how far off that is."""
    rows = [("output tokens/s", simulated.output_tokens_per_s, measured.output_tokens_per_s)]
    for name, ours, theirs in (
        ("first token", simulated.ttft_s, measured.ttft_s),
        ("per token", simulated.tpot_s, measured.tpot_s),
    ):
        if ours is not None and theirs is not None:
            rows += [(f"{name}, p50, ms", ours.p50 * 1e3, theirs.p50 * 1e3)]
            rows += [(f"{name}, p95, ms", ours.p95 * 1e3, theirs.p95 * 1e3)]
    lines = [f"  {'against the run of the trace':30}{'simulated':>11}{'measured':>11}{'off by':>9}"]
    lines += [f"  {name:30}{ours:11.2f}{theirs:11.2f}{ours / theirs - 1:+9.1%}" for name, ours, theirs in rows]
    return "\n".join(lines)
