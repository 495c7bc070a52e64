"""One plan, before it is applied or as it runs: layers against hosts, memory, what is predicted, and why."""

from __future__ import annotations

from agent.facts.cluster import DeviceFacts
from agent.planner.asked import asked_words
from agent.planner.compare import plan_change
from agent.planner.plan import Plan, RankPlace, rank_places
from agent.planner.staleness import what_moved
from agent.planner.words import (
    bytes_interval_words,
    bytes_words,
    joules_interval_words,
    list_words,
    rate_interval_words,
    rate_words,
    seconds_interval_words,
    seconds_words,
)
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.bars import parts_bar
from odctl.tui.model.marks import DEPLOYMENT_MARKS
from odctl.tui.model.plans import PlanChoice, cluster_facts, deployed_plan
from odctl.tui.model.text import BLANK, Line, Span, Tone, fit, line, line_width, wrap
from odctl.tui.model.units import plural

_MEMORY_GLYPHS = "█▓▒░"
_MEMORY_TONES: tuple[Tone, ...] = ("bar", "kv", "activation", "dim")


def plan_page(choice: PlanChoice, snapshot: FleetSnapshot | None, *, width: int) -> tuple[Line, ...]:
    """The whole page."""
    sections = [
        _head(choice, width),
        _layer_map(choice.plan, snapshot, width),
        _predicted(choice, width),
        change_lines(choice, snapshot, width),
        _moved(choice, snapshot, width),
        _why(choice.plan, width),
    ]
    lines: list[Line] = []
    for section in sections:
        if section and lines:
            lines.append(BLANK)
        lines += section
    return tuple(lines)


def _head(choice: PlanChoice, width: int) -> tuple[Line, ...]:
    plan, serving = choice.plan, choice.plan.serving
    if choice.status is not None:
        mark = DEPLOYMENT_MARKS[choice.status.state]
        state = Span(f"{mark.glyph} {mark.word}, generation {choice.status.generation}", mark.tone)
    else:
        state = Span(f"preview of {choice.origin}", "heal")
    places = rank_places(plan)
    num_layers = max(place.layers[1] for place in places)
    parts = [
        f"{plan.model.name} {serving.precision}",
        f"{num_layers} layers",
        plural(len(plan.replicas), "replica"),
        plural(len(plan.replicas[0].stages), "stage"),
        f"{plural(len({place.shard.host for place in places}), 'host')}, {plural(len(places), 'device')}",
        f"for {plan.objective.kind} by {plan.objective.strategy}",
        f"context {serving.context}, batch {serving.batch}",
        *([f"draft model {plan.draft.name} {bytes_words(plan.draft.weight_bytes)}"] if plan.draft else []),
        f"gateway {plan.gateway_host} {serving.listen}",
        f"plan {choice.plan_hash[:12]}",
    ]
    lines = [line(" ", Span(plan.name, "bold"), "  ", state)]
    for part in parts:
        if line_width(lines[-1]) + 3 + len(part) > width:
            lines.append(line(" "))
        gap = "   " if line_width(lines[-1]) > 1 else ""
        lines[-1] += line(f"{gap}{part}")
    if asked := asked_words(plan.asked):
        lines += [line(Span(f" {text}", "dim")) for text in wrap(f"asked for {', '.join(asked)}", width - 2)]
    if choice.error is not None:
        lines.append(line(Span(f" ▲ its controller does not answer: {choice.error.message}", "warn")))
    return tuple(lines)


def _layer_map(plan: Plan, snapshot: FleetSnapshot | None, width: int) -> tuple[Line, ...]:
    """A line a rank: which layers it holds, and how its memory is filled."""
    places = rank_places(plan)
    num_layers = max(place.layers[1] for place in places)
    bar_cells = 12 if width < 100 else 24
    longest = max(len(f"{place.shard.host}/{place.shard.device}") for place in places)
    name_cells = min(16 if width < 100 else 28, max(11, longest))
    map_cells = map_width(num_layers, room=max(8, width - name_cells - bar_cells - 38))
    slowest = slowest_stage(plan)
    lines: list[Line] = []
    for replica in range(len(plan.replicas)):
        if len(plan.replicas) > 1:
            lines.append(line(Span(f" replica {replica}", "title")))
        header = f" {'RANK':<7} {fit('HOST/DEVICE', name_cells)} {ruler(num_layers, map_cells)} "
        lines.append(line(Span(f"{header}{fit('MEMORY', bar_cells)} {'NEEDS / USABLE':>17} {'ms':>6}", "title")))
        for place in places:
            if place.replica != replica:
                continue
            lines.append(
                line(
                    f" {fit(place.rank_id, 7)} ",
                    Span(fit(f"{place.shard.host}/{place.shard.device}", name_cells), "bold"),
                    " ",
                    *layer_spans(place, num_layers, map_cells),
                    " ",
                    *memory_spans(place, _device(snapshot, place), bar_cells),
                    *stage_time(plan, place, is_slowest=replica == 0 and place.stage == slowest),
                )
            )
    lines.append(
        line(
            Span(" █ weights ", "bar"),
            Span("▓ KV cache ", "kv"),
            Span("▒ activations ", "activation"),
            Span("░ headroom  · free", "dim"),
            Span("   ◀ bottleneck", "warn"),
        )
    )
    return tuple(lines)


def map_width(num_layers: int, *, room: int) -> int:
    """A whole number of cells a layer where there is room, at most four; else all the room."""
    return num_layers * min(4, room // num_layers) if num_layers <= room else room


def ruler(num_layers: int, cells: int) -> str:
    """`0 … 31`: first and last layer at the ends of the map."""
    last = str(num_layers - 1)
    return fit("0" + last.rjust(cells - 1) if cells > len(last) + 1 else "LAYERS", cells)


def layer_spans(place: RankPlace, num_layers: int, cells: int) -> tuple[Span, ...]:
    """Where a rank's layers lie among all; followers of a tensor-parallel group are drawn lighter."""
    first, end = (round(layer * cells / num_layers) for layer in place.layers)
    end = min(cells, max(end, first + 1))
    first = min(first, end - 1)
    glyph = "█" if place.tensor_index == 0 else "▒"
    return (Span("·" * first, "dim"), Span(glyph * (end - first), "bar"), Span("·" * (cells - end), "dim"))


def memory_spans(place: RankPlace, device: DeviceFacts | None, cells: int) -> tuple[Span, ...]:
    """A bar of what a rank needs of its device, and both in words."""
    needs = place.shard.bytes
    usable = device.usable_bytes if device is not None else needs.total
    parts = [needs.weights, needs.kv_cache, needs.activations, needs.headroom]
    tones: tuple[Tone, ...] = (*_MEMORY_TONES, "dim")
    drawn = parts_bar([part / usable if usable else 0.0 for part in parts], _MEMORY_GLYPHS, cells)
    text = f"{bytes_words(needs.total)} / {bytes_words(usable) if device is not None else '?'}"
    tone: Tone = "fault" if needs.total > usable else "plain"
    return (*(Span(glyphs, tones[index]) for glyphs, index in drawn), Span(f" {text:>17}", tone))


def stage_time(plan: Plan, place: RankPlace, *, is_slowest: bool) -> tuple[Span, ...]:
    """Predicted milliseconds of a decode step in this stage; the planner gives those of replica 0."""
    stage_s = plan.predicted.stage_s
    if place.replica != 0 or place.stage >= len(stage_s):
        return (Span(f" {'—':>6}", "dim"),)
    mark = Span("◀", "warn") if is_slowest and len(stage_s) > 1 else Span(" ")
    return (Span(f" {_milliseconds(stage_s[place.stage]):>6}"), mark)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def slowest_stage(plan: Plan) -> int | None:
    """The stage of replica 0 with the longest predicted time; None where no times are recorded."""
    stage_s = plan.predicted.stage_s
    return max(range(len(stage_s)), key=lambda stage: stage_s[stage], default=None)


def _device(snapshot: FleetSnapshot | None, place: RankPlace) -> DeviceFacts | None:
    host = snapshot.host(place.shard.host) if snapshot else None
    if host is None or host.facts is None:
        return None
    return next((device for device in host.facts.devices if device.id == place.shard.device), None)


def _predicted(choice: PlanChoice, width: int) -> tuple[Line, ...]:
    """What the planner expects; beside it what was measured, where this plan runs."""
    predicted, status = choice.plan.predicted, choice.status
    checked = status.checked if status else None
    backend = status.backend if status else None
    rows = [
        (
            "time to first token",
            seconds_interval_words(predicted.ttft),
            seconds_words(checked.ttft_s) if checked else "",
        ),
        (
            "time per token",
            seconds_interval_words(predicted.time_per_token),
            seconds_words(checked.time_per_token_s) if checked else "",
        ),
        (
            f"decode at batch {choice.plan.serving.batch}",
            rate_interval_words(predicted.throughput),
            f"now {rate_words(backend.tokens_per_s)}" if backend else "",
        ),
    ]
    if (energy := predicted.energy) is not None:
        rows.append(("energy per token", joules_interval_words(energy), ""))
    if (peak := predicted.memory_peak) is not None:
        rows.append(("fullest device", bytes_interval_words(peak), ""))
    cells = max(12, *(len(value) for _, value, _ in rows))
    has_measured = any(measured for _, _, measured in rows)
    titles = f" {'':<24} {'PREDICTED':>{cells}}" + (f" {'MEASURED':>16}" if has_measured else "")
    lines = [line(Span(titles, "title"))]
    lines += [
        line(f" {name:<24} {value:>{cells}} ", Span(f"{measured:>16}", "bold")) for name, value, measured in rows
    ]
    conditions = f"predicted for a prompt of {predicted.prompt_tokens} tokens, one request at a time"
    if checked is not None:
        conditions += f"; measured by the canary when it was applied, prompt of {checked.prompt_tokens}"
    lines += [line(Span(f"   {text}", "dim")) for text in wrap(conditions, width - 4)]
    lines += [line(Span(f"   bottleneck: {text}", "dim")) for text in wrap(predicted.bottleneck, width - 16)]
    return tuple(lines)


def change_lines(choice: PlanChoice, snapshot: FleetSnapshot | None, width: int) -> tuple[Line, ...]:
    """What applying this file would do to the deployment of its name."""
    if choice.status is not None or snapshot is None:
        return ()
    view = snapshot.deployment(choice.plan.name)
    old = deployed_plan(view.status) if view is not None and view.status is not None else None
    if view is None or view.status is None or old is None:
        return (line(Span(" change  ", "title"), f"{choice.plan.name} is not deployed: all of it is new"),)
    if view.status.plan_hash == choice.plan_hash:
        return (
            line(
                Span(" change  ", "title"), Span(f"none: this plan runs, generation {view.status.generation}", "ok")
            ),
        )
    said = f"against running generation {view.status.generation}: " + ", ".join(_differences(old, choice.plan))
    return tuple(
        line(Span(" change  " if index == 0 else "         ", "title"), text)
        for index, text in enumerate(wrap(said, width - 10))
    )


def _differences(old: Plan, new: Plan) -> list[str]:
    change = plan_change(old, new)
    moved, num_layers = len(change.layers_moved), max(place.layers[1] for place in rank_places(new))
    out = []
    if moved:
        verb = "moves" if moved == 1 else "move"
        out.append(f"{moved} of {num_layers} layers {verb}, {bytes_words(change.bytes_to_move)} to move")
    out += [f"+{host}" for host in change.hosts_added] + [f"-{host}" for host in change.hosts_removed]
    if _devices(old) != _devices(new) and not out:
        out.append("other devices of the same hosts")
    if old.serving != new.serving:
        out.append("serving settings differ")
    if old.model.digest != new.model.digest:
        out.append(f"another model ({old.model.name} before)")
    return out or ["the same layers on the same devices"]


def _devices(plan: Plan) -> list[tuple[str, str]]:
    return [(place.shard.host, place.shard.device) for place in rank_places(plan)]


def _moved(choice: PlanChoice, snapshot: FleetSnapshot | None, width: int) -> tuple[Line, ...]:
    """What is no longer as it was when the plan was made."""
    if snapshot is None or choice.status is not None:
        return ()
    facts = cluster_facts(snapshot)
    silent = [name for name in choice.plan.hosts if facts.host(name) is None]
    lines = []
    if silent:
        text = f" ▲ cannot tell whether it still fits: no facts yet of {list_words(silent)}"
        lines.append(line(Span(text, "warn")))
    for change in what_moved(choice.plan, facts):
        if not any(change.startswith(f"host {name} ") for name in silent):
            lines += [line(Span(f" ▲ since this plan: {text}", "warn")) for text in wrap(change, width - 20)]
    return tuple(lines)


def _why(plan: Plan, width: int) -> tuple[Line, ...]:
    lines: list[Line] = []
    for reason in plan.why:
        for index, text in enumerate(wrap(reason, width - 8)):
            lines.append(line(Span(" why   " if index == 0 else "       ", "title"), text))
    return tuple(lines)
