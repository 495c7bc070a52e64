"""`odctl strategies`: what measured runs taught about each strategy, and what was chosen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from agent.planner.learning.course import Measurement
    from agent.planner.learning.state import Selection
    from agent.planner.learning.summary import StrategyRow
    from odctl.learning import LearningReport

SHOWN_SELECTIONS = 40
SHOWN_MEASUREMENTS = 40


@click.command("strategies")
@click.option("--history", "with_history", is_flag=True, help="Also what was chosen, and what came of it.")
@click.option(
    "--measurements", "with_measurements", is_flag=True, help="Also every measurement, and the regret then."
)
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, with_history: bool, with_measurements: bool, as_json: bool) -> None:
    """Show what applied plans were measured to do, per strategy and kind of workload.

    REGRET is how much slower a token is than with the best strategy measured on the same kind of workload.
    """
    run_command(
        lambda: strategies(inventory_path, with_history=with_history, with_measurements=with_measurements),
        as_json=as_json,
    )


def strategies(inventory_path: str, *, with_history: bool, with_measurements: bool = False) -> Result:
    """Raises E2xx when no host answers."""
    import msgspec

    from agent.errors import FleetError
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.learning import read_learning
    from odctl.session import visit_fleet, warn_unreachable

    async def look(fleet: Fleet, inventory: Inventory) -> Result:
        report = await read_learning(fleet, inventory.learning)
        warn_unreachable({host: FleetError.from_detail(why, host=host) for host, why in report.missing.items()})
        lines = [_features_line(report), _weights_line(msgspec.structs.asdict(report.weights))]
        lines += _state_lines(report)
        lines += _table(report.strategies)
        if with_history:
            lines += ["", *(_selection_line(selection) for selection in report.history[-SHOWN_SELECTIONS:])]
            if len(report.history) > SHOWN_SELECTIONS:
                lines.append(f"and {len(report.history) - SHOWN_SELECTIONS} earlier ones (--json has them all)")
        if with_measurements:
            lines += ["", *_measurement_lines(report.measurements)]
        code = ExitCode.UNREACHABLE if report.missing else ExitCode.OK
        return Result(kind="strategies", data=msgspec.to_builtins(report), prose="\n".join(lines), exit_code=code)

    return visit_fleet(inventory_path, look)


def _state_lines(report: LearningReport) -> list[str]:
    """What holds for all strategies: whether anything is learnt, and what changed under it."""
    lines = []
    if not report.settings.enabled:
        lines.append("learning is switched off in the inventory: plans are neither recorded nor advised")
    if report.regret is not None:
        lines.append(f"regret so far: a token took {report.regret:.1%} longer than with the best strategy measured")
    for alarm in report.alarms:
        lines.append(
            f"drift alarm {_when(alarm.at_s)}: {alarm.arm} of {alarm.deployment} took {alarm.ratio:.2f} times what "
            "was predicted; what was learnt before fades"
        )
    for change in report.changes:
        lines.append(
            f"plan {change.plan_hash[:12]} changed {_when(change.since_s)}: runs before it say nothing of its links"
        )
    return lines


def _features_line(report: LearningReport) -> str:
    """What the inventory switches on, and what the cost model rests on."""
    settings = report.settings
    learns, explores = ("on" if each else "off" for each in (settings.enabled, settings.explore))
    protected = ", ".join(settings.protected) or "none"
    runs = "1 run" if report.num_runs == 1 else f"{report.num_runs} runs"
    return f"learning {learns}, exploring {explores}, protected: {protected}; cost model fitted to {runs}"


def _measurement_lines(measurements: tuple[Measurement, ...]) -> list[str]:
    """The newest, oldest first: what was predicted per token, what was measured, and the regret so far after it."""
    from agent.planner.learning.course import median_error
    from agent.planner.words import seconds_words

    error = median_error(measurements)
    if error is None:
        return ["no time per token was measured yet"]
    lines = [
        f"predictions of {len(measurements)} measurements were off by {error:.1%} (median)",
        f"  {'WHEN':<20}{'DEPLOYMENT':<16}{'GEN':>4}  {'STRATEGY':<16}{'PREDICTED':>10}{'MEASURED':>10}{'RATIO':>7}"
        f"{'REQUESTS':>10}{'FAILED':>8}{'REGRET':>8}  WORKLOAD",
    ]
    for each in measurements[-SHOWN_MEASUREMENTS:]:
        promised, found = each.predicted.time_per_token_s, each.measured.time_per_token_s
        regret = "-" if each.regret is None else f"{each.regret:.1%}"
        lines.append(
            f"  {_when(each.at_s):<20}{each.deployment:<16}{each.generation:>4}  {each.arm:<16}"
            f"{seconds_words(promised) if promised else '-':>10}{seconds_words(found) if found else '-':>10}"
            f"{'-' if each.ratio is None else f'{each.ratio:.2f}':>7}{each.requests:>10}{each.failed:>8}{regret:>8}"
            f"  {each.bucket}"
        )
    if len(measurements) > SHOWN_MEASUREMENTS:
        lines.append(f"and {len(measurements) - SHOWN_MEASUREMENTS} earlier ones (--json has them)")
    return lines


def _when(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def _weights_line(weights: dict[str, float]) -> str:
    return "weights of the objectives: " + ", ".join(f"{name} {value:.0%}" for name, value in weights.items())


def _table(rows: tuple[StrategyRow, ...]) -> list[str]:
    from agent.planner.words import rate_words, seconds_words

    if not rows:
        return ["nothing was measured yet: apply a plan and ask it something"]
    lines: list[str] = []
    bucket = None
    for row in rows:
        if row.bucket != bucket:
            bucket = row.bucket
            lines += ["", bucket]
            lines.append(
                f"  {'STRATEGY':<16}{'REQUESTS':>9}{'OK':>6}{'PER TOKEN':>12}{'±':>9}{'PREDICTED':>11}{'OFF':>8}"
                f"{'FIRST':>10}{'RATE':>12}{'BUSY':>6}{'WEIGHT':>8}{'REGRET':>8}"
            )
        cells = (
            f"{row.executions:>9}",
            f"{_percent(row.success):>6}",
            f"{seconds_words(row.time_per_token_s) if row.time_per_token_s else '-':>12}",
            f"{seconds_words(row.deviation_s) if row.deviation_s else '-':>9}",
            f"{seconds_words(row.predicted_s) if row.predicted_s else '-':>11}",
            f"{_percent(row.error, signed=True):>8}",
            f"{seconds_words(row.ttft_s) if row.ttft_s else '-':>10}",
            f"{rate_words(row.tokens_per_s) if row.tokens_per_s else '-':>12}",
            f"{_percent(row.utilisation):>6}",
            f"{_percent(row.weight):>8}",
            f"{_percent(row.regret):>8}",
        )
        lines.append(f"  {row.arm:<16}" + "".join(cells))
    return lines


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.0%}" if signed else f"{value:.0%}"


def _selection_line(selection: Selection) -> str:
    from agent.planner.words import seconds_words

    chosen = selection.chosen
    when = _when(selection.at_s)
    promised = chosen.predicted.time_per_token_s
    line = (
        f"{when}  {selection.deployment} generation {selection.generation}  plan {selection.plan_hash[:12]}  "
        f"{chosen.arm} for {chosen.objective} by {chosen.asked}, likelihood {chosen.propensity:.0%}: "
        f"predicted {seconds_words(promised) if promised else '-'} per token"
    )
    measured = selection.outcome.time_per_token_s if selection.outcome else None
    if measured is None:
        return f"{line}, not measured yet"
    return f"{line}, measured {seconds_words(measured)}, {selection.requests} requests, {selection.failed} failed"
