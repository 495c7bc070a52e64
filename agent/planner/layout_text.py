"""A plan drawn in text: layers against devices, memory against what is usable. Pure; the CLI and the UI print it.

Bars use eighths of a block where they end. `█` weights, `▓` KV cache, `▒` activations and runtime, `·` free.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from agent.planner.asked import asked_words
from agent.planner.carriers import stage_carriers
from agent.planner.compare import imbalance, shape_words
from agent.planner.explain import Section
from agent.planner.plan import Plan, Predicted, Range, RankPlace, ShardBytes, draft_places, rank_places
from agent.planner.words import (
    bytes_interval_words,
    bytes_words,
    joules_interval_words,
    list_words,
    rate_interval_words,
    seconds_interval_words,
    seconds_words,
)

MEMORY_BAR_WIDTH = 10
LEAST_LAYER_BAR_WIDTH = 8
MAX_NAMED_LINKS = 8
LEGEND = "█ weights  ▓ KV cache  ▒ activations and runtime  · free  ◀ bottleneck"

UsableBytes = Mapping[tuple[str, str], int]
"""Usable bytes by (host, device), where they are known: they decide what a full memory bar is."""


class PreviewRow(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a preview, drawn; `stage_s` is None past replica 0, for which no stage times are recorded."""

    place: RankPlace
    layer_bar: str
    memory_bar: str
    used_fraction: float | None
    stage_s: float | None
    is_bottleneck: bool


def layer_bar(layers: Range, num_layers: int, width: int) -> str:
    """`····████····`: the cells whose layers these are. A stage is never invisible, however narrow the bar."""
    first, end = layers
    begin = min(width - 1, first * width // num_layers)
    stop = max(begin + 1, end * width // num_layers)
    return "·" * begin + "█" * (stop - begin) + "·" * (width - stop)


def memory_bar(held: ShardBytes, capacity: int, width: int) -> str:
    """`█████▓▓▒··`: what fills `capacity` bytes. Cells are rounded on cumulated bytes, so errors do not add up."""
    parts = (("█", held.weights), ("▓", held.kv_cache), ("▒", held.activations + held.headroom))
    bar, reached = "", 0
    for glyph, num_bytes in parts:
        reached += num_bytes
        cells = min(width, (2 * reached * width + capacity) // (2 * capacity)) if capacity else 0
        bar += glyph * (cells - len(bar))
    return bar + "·" * (width - len(bar))


def preview_rows(plan: Plan, *, layer_width: int, usable: UsableBytes | None = None) -> list[PreviewRow]:
    """Every rank of a plan with its bars. Without usable bytes, the fullest rank's memory is a full bar."""
    num_layers = max(end for replica in plan.replicas for stage in replica.stages for end in stage.layers[1:])
    known = usable or {}
    peak = max(place.shard.bytes.total for place in rank_places(plan))
    times = plan.predicted.stage_s
    slowest = max(range(len(times)), key=times.__getitem__) if times else -1
    rows = []
    for place in rank_places(plan):
        held = place.shard.bytes
        capacity = known.get((place.shard.host, place.shard.device))
        has_time = place.replica == 0 and place.stage < len(times)
        rows.append(
            PreviewRow(
                place=place,
                layer_bar=layer_bar(place.layers, num_layers, layer_width),
                memory_bar=memory_bar(held, capacity or peak, MEMORY_BAR_WIDTH),
                used_fraction=held.total / capacity if capacity else None,
                stage_s=times[place.stage] if has_time else None,
                is_bottleneck=has_time and place.stage == slowest and len(times) > 1,
            )
        )
    return rows


def preview_lines(plan: Plan, *, width: int, usable: UsableBytes | None = None) -> list[str]:
    """The whole preview at `width` columns: title, layers and memory of every rank, legend, links, prediction."""
    layout = layout_lines(plan, width=width, usable=usable)
    return [
        title_line(plan),
        *asked_lines(plan, width=width),
        "",
        *layout,
        *link_lines(plan),
        *draft_lines(plan),
        "",
        *predicted_lines(plan),
    ]


def plan_text(plan: Plan, *, width: int = 100, usable: UsableBytes | None = None) -> str:
    """The preview and the planner's reasons: what `odctl plan` and `odctl show` print."""
    lines = preview_lines(plan, width=width, usable=usable)
    if plan.why:
        lines += ["", "why", *(f"  {line}" for line in plan.why)]
    return "\n".join(lines)


def title_line(plan: Plan) -> str:
    """`chat  llama-70b bfloat16  80 layers  4 stages, 4 devices on 4 hosts  for latency by adaptive`."""
    num_layers = max(stage.layers[1] for replica in plan.replicas for stage in replica.stages)
    return (
        f"{plan.name}  {plan.model.name} {plan.serving.precision}  {num_layers} layers  {shape_words(plan)}  "
        f"for {plan.objective.kind} by {plan.objective.strategy}"
    )


def layout_lines(plan: Plan, *, width: int, usable: UsableBytes | None = None) -> list[str]:
    """Layers against devices, one line a rank; a replica's ranks follow one another."""
    ranks = rank_places(plan)
    names = [f"{place.shard.host}/{place.shard.device}" for place in ranks]
    ids = [_stage_name(place, plan) for place in ranks]
    id_width, name_width = max(map(len, [*ids, "#"])), max(map(len, [*names, "DEVICE"]))
    fixed = id_width + name_width + MEMORY_BAR_WIDTH + len("  ") * 4 + len(" 100.0 GB 100%") + len("99.9 ms ◀")
    num_layers = max(place.layers[1] for place in ranks)
    bar_width = max(LEAST_LAYER_BAR_WIDTH, min(num_layers, width - fixed))
    rows = preview_rows(plan, layer_width=bar_width, usable=usable)
    scale = f"0{num_layers - 1:>{bar_width - 1}}"
    lines = [f"{'#':<{id_width}}  {'DEVICE':<{name_width}}  {scale}  {'MEMORY':<{MEMORY_BAR_WIDTH + 14}}  TIME"]
    for rank_id, name, row in zip(ids, names, rows, strict=True):
        full = f"{row.used_fraction:.0%}" if row.used_fraction is not None else ""
        held = f"{bytes_words(row.place.shard.bytes.total):>8} {full:>4}"
        time = seconds_words(row.stage_s) if row.stage_s is not None else ""
        mark = " ◀" if row.is_bottleneck else ""
        line = (
            f"{rank_id:<{id_width}}  {name:<{name_width}}  {row.layer_bar}  {row.memory_bar} {held}  {time}{mark}"
        )
        lines.append(line.rstrip())
    return [*lines, LEGEND]


def link_lines(plan: Plan) -> list[str]:
    """`links  s0>s1 tls, s1 unix`: the carrier of every link and group, counted where they are many."""
    named = stage_carriers(plan)
    if not named:
        return []
    if len(named) <= MAX_NAMED_LINKS:
        return [f"links  {', '.join(f'{name} {carrier}' for name, carrier in named)}"]
    counts = Counter(carrier for _, carrier in named)
    return [f"links  {', '.join(f'{count} {carrier}' for carrier, count in sorted(counts.items()))}"]


def draft_lines(plan: Plan) -> list[str]:
    """`draft  llama-1b, 2.5 GB of weights on gpu04/cuda:0`: who guesses, and where it stands."""
    if plan.draft is None:
        return []
    where = list_words([f"{place.shard.host}/{place.shard.device}" for place in draft_places(plan)])
    return [f"draft  {plan.draft.name}, {bytes_words(plan.draft.weight_bytes)} of weights on {where}"]


def asked_lines(plan: Plan, *, width: int) -> list[str]:
    """`asked  at most 3 hosts, gpu01 pinned`, wrapped; nothing where there was no constraint."""
    words = asked_words(plan.asked)
    return textwrap.wrap(", ".join(words), width, initial_indent="asked  ", subsequent_indent=" " * 7)


def section_lines(sections: Iterable[Section], *, width: int) -> list[str]:
    """Sections of an explanation: a title a line, its sentences below, wrapped."""
    lines: list[str] = []
    for section in sections:
        lines += ["", section.title]
        for sentence in section.lines:
            lines += textwrap.wrap(sentence, width, initial_indent="  ", subsequent_indent="    ")
    return lines[1:]


def predicted_lines(plan: Plan) -> list[str]:
    """What is expected, and at which prompt and batch."""
    predicted, serving = plan.predicted, plan.serving
    lines = [
        f"predicted for a prompt of {predicted.prompt_tokens} tokens, context {serving.context}:",
        f"  first token      {seconds_interval_words(predicted.ttft)}",
        f"  then per token   {seconds_interval_words(predicted.time_per_token)}, one stream",
        f"  throughput       {rate_interval_words(predicted.throughput)}, "
        f"{serving.batch * len(plan.replicas)} streams",
        *_resource_lines(predicted),
        *([f"  bounds           {trust_words(predicted)}"] if predicted.ttft_bounds_s else []),
        f"  bottleneck       {predicted.bottleneck}",
    ]
    if len(predicted.stage_s) > 1:
        lines.append(f"  imbalance        the slowest stage takes {imbalance(plan):.0%} longer than the mean")
    return lines


def _resource_lines(predicted: Predicted) -> list[str]:
    """Energy and memory, of which plans of earlier releases say nothing."""
    lines = []
    if (energy := predicted.energy) is not None:
        lines.append(f"  energy           {joules_interval_words(energy)} per token, watts by the data sheet")
    if (peak := predicted.memory_peak) is not None:
        lines.append(f"  fullest device   {bytes_interval_words(peak)}, least and most that it may take")
    return lines


def trust_words(predicted: Predicted) -> str:
    """What the bounds rest on."""
    count = predicted.num_measured_runs
    if not count:
        return "4 in 5 runs; published constants, no run here yet"
    figures = "1 figure" if count == 1 else f"{count} figures"
    return f"4 in 5 runs; fitted to {figures} measured here"


def _stage_name(place: RankPlace, plan: Plan) -> str:
    """`0`, `1.0` for ranks of a tensor-parallel group, `r1 0` where there are replicas."""
    group = len(plan.replicas[place.replica].stages[place.stage].shards)
    stage = f"{place.stage}.{place.tensor_index}" if group > 1 else f"{place.stage}"
    return f"r{place.replica} {stage}" if len(plan.replicas) > 1 else stage
