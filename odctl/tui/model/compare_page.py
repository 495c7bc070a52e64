"""Two to four plans beside each other: figures, layers that move, bytes to bring, risk, who wins for what. Pure.

The first plan is A; what is told of a change is told from it to another. The chosen plan is the one that bars hold
against A, and that can be applied.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.planner.compare import HostMove, Metric, PlanChange
from agent.planner.interval import Interval
from agent.planner.plan import Plan, Range, rank_places
from agent.planner.risk import risk_words
from agent.planner.words import bytes_words, figure_words, list_words, runs_words, seconds_words
from odctl.tui.model.columns import GAP, beside, stacked
from odctl.tui.model.compare_view import CompareView, letter_of, origin_words
from odctl.tui.model.plan_map import map_width, ruler
from odctl.tui.model.text import Line, Span, fit, line, wrap

NAME_CELLS = 19
FIGURE_CELLS = 10
DELTA_CELLS = 7
LEAST_HALF_BAR, MOST_HALF_BAR = 4, 22
MOST_HOSTS = 400
BESIDE_WIDTH = 120
HASH_WIDTH = 100
SHADES = "▒░"


def compare_page(
    view: CompareView, *, width: int, shows_all_hosts: bool, remarks: Sequence[str] = ()
) -> tuple[Line, ...]:
    """The whole page. `remarks` are about what is compared, not of it."""
    said = [spans for remark in remarks for spans in _warned(remark, width)]
    head: list[Sequence[Line]] = [(*_head(view, width), *said), _maps(view, width), _metrics(view, width)]
    if width < BESIDE_WIDTH:
        return stacked(
            [*head, _verdicts(view, width), _moves(view, width), _hosts(view, width, shows_all=shows_all_hosts)]
        )
    left = (width - GAP) // 2
    right = width - GAP - left
    below = beside(
        stacked([_verdicts(view, left), _moves(view, left)]),
        _hosts(view, right, shows_all=shows_all_hosts),
        left_width=left,
        right_width=right,
    )
    return stacked([*head, below])


# --- who they are -------------------------------------------------------------------------------------


def _head(view: CompareView, width: int) -> tuple[Line, ...]:
    whole = view.whole
    lines: list[Line] = []
    for index, choice in enumerate(view.choices):
        is_chosen = index == view.chosen
        said = f"{origin_words(choice)}   {whole.shapes[index]}"
        said += f"   {whole.hashes[index][:12]}" if width >= HASH_WIDTH else ""
        asked = f"   asked for {', '.join(whole.asked[index])}" if whole.asked[index] else ""
        name = f"{choice.plan.name}  "
        for row, text in enumerate(wrap(said + asked, max(20, width - 6 - len(name)))):
            first = [
                Span("▶" if is_chosen else " ", "key"),
                Span(f" {letter_of(index)}  ", "key" if is_chosen else "title"),
            ]
            indent = [*first, Span(name, "bold")] if row == 0 else [Span(" " * (5 + len(name)))]
            lines.append(line(*indent, text))
    if whole.is_same:
        lines.append(line(Span(" ✓ the plans are the same", "ok")))
    for warning in whole.warnings:
        lines += _warned(warning, width)
    return tuple(lines)


def _warned(said: str, width: int) -> list[Line]:
    return [
        line(Span(f" {'▲' if row == 0 else ' '} {text}", "warn")) for row, text in enumerate(wrap(said, width - 4))
    ]


# --- layers -------------------------------------------------------------------------------------------


def _maps(view: CompareView, width: int) -> tuple[Line, ...]:
    """Each plan's stages along the layers, and for every other plan than A where its layers move."""
    plans = [choice.plan for choice in view.choices]
    num_layers = max(place.layers[1] for plan in plans for place in rank_places(plan))
    cells = map_width(num_layers, room=max(16, width - 34))
    lines = [line(Span(f"    {ruler(num_layers, cells)}", "title"))]
    for index, plan in enumerate(plans):
        more = len(plan.replicas) - 1
        said = f"and {more} more of them" if more else ""
        spans = stage_strip(plan, num_layers, cells)
        lines.append(
            line(Span(f" {letter_of(index)}  ", "key" if index == view.chosen else "title"), *spans, f"  {said}")
        )
    for change in view.whole.changes:
        moved = len(change.layers_moved)
        verb = "moves" if moved == 1 else "move"
        lines.append(
            line(
                Span(f" Δ{letter_of(change.plan)} ", "title"),
                *delta_lane(change, num_layers, cells),
                Span(f"  {moved} of {num_layers} layers {verb}", "warn" if moved else "dim"),
            )
        )
    return tuple(lines)


def stage_strip(plan: Plan, num_layers: int, cells: int) -> tuple[Span, ...]:
    """Stages of replica 0 in turns of two shades, each with its number where its cells have room for it."""
    spans: list[Span] = []
    at = 0
    for index, stage in enumerate(plan.replicas[0].stages):
        end = round(stage.layers[1] * cells / num_layers)
        label = str(index)
        number = label if len(label) < end - at else ""
        spans += [Span(number, "bold"), Span(SHADES[index % 2] * (end - at - len(number)), "bar")]
        at = end
    return (*spans, Span("·" * (cells - at), "dim"))


def delta_lane(change: PlanChange, num_layers: int, cells: int) -> tuple[Span, ...]:
    """`··▲▲·`: a cell is marked when any of its layers moves."""
    marked = set()
    for layer in change.layers_moved:
        first = round(layer * cells / num_layers)
        marked |= set(range(first, max(first + 1, round((layer + 1) * cells / num_layers))))
    return tuple(Span("▲", "warn") if cell in marked else Span("·", "dim") for cell in range(cells))


# --- figures ------------------------------------------------------------------------------------------


def _metrics(view: CompareView, width: int) -> tuple[Line, ...]:
    letters = [letter_of(index) for index in range(len(view.choices))]
    other = letters[view.against]
    used = 1 + NAME_CELLS + len(letters) * (FIGURE_CELLS + 1) + DELTA_CELLS + 3
    half = min(MOST_HALF_BAR, (width - used - 4) // 2)
    titles = f" {'':<{NAME_CELLS}}" + "".join(f" {letter:>{FIGURE_CELLS}}" for letter in letters)
    titles += f" {f'Δ{other}':>{DELTA_CELLS}}"
    if half >= LEAST_HALF_BAR:
        sides = ("◀ A better", f"{other} better ▶") if half >= len("◀ A better") else ("◀ A", f"{other} ▶")
        titles += f"  {fit(sides[0], half, is_right=True)}│{fit(sides[1], half)}"
    else:
        titles += "  BEST"
    lines = [line(Span(titles, "title"))]
    pairs = {metric.name: metric for metric in view.pair.metrics}
    has_overlap = False
    for metric in view.whole.metrics:
        pair = pairs[metric.name]
        delta, is_unsure = pair.deltas[1], _overlaps(pair)
        has_overlap = has_overlap or is_unsure
        spans: list[Span | str] = [f" {fit(metric.name, NAME_CELLS)}"]
        for index, value in enumerate(metric.values):
            spans.append(
                Span(
                    f" {figure_words(value, metric.unit):>{FIGURE_CELLS}}",
                    "ok" if metric.best == index else "plain",
                )
            )
        spans.append(f" {_delta_words(metric, delta):>{DELTA_CELLS}}{'~' if is_unsure else ' '}")
        if half >= LEAST_HALF_BAR:
            spans += [" ", *versus_bar(pair, half)]
        else:
            spans.append(Span(f" {letters[metric.best]} ●" if metric.best is not None else " =", "ok"))
        lines.append(line(*spans))
    if has_overlap:
        said = (
            "~ the predicted intervals of both overlap: a measurement may say otherwise (odctl compare --measure)"
        )
        lines += [line(Span(f" {text}", "dim")) for text in wrap(said, width - 2)]
    if all(metric.unit != "J" for metric in view.whole.metrics):
        lines.append(line(Span(" energy is not compared: not every plan's file tells it", "dim")))
    return tuple(lines)


def versus_bar(pair: Metric, half: int) -> tuple[Span, ...]:
    """A bar from the middle to the side of the better plan; a full one stands for a change by all of A or more.

    A figure of which more is neither better nor worse, and equal ones, have none.
    """
    delta = pair.deltas[1]
    if pair.best is None or not delta:
        return (Span(" " * half), Span("│", "dim"), Span(" " * half))
    cells = max(1, min(half, round(abs(delta) * half)))
    drawn = "█" * cells
    if pair.best == 0:
        return (Span(" " * (half - cells)), Span(drawn, "warn"), Span("│", "dim"), Span(" " * half))
    return (Span(" " * half), Span("│", "dim"), Span(drawn, "ok"), Span(" " * (half - cells)))


def _overlaps(pair: Metric) -> bool:
    """Whether the predictions leave open who is better, though one is expected to be."""
    if len(pair.bounds) != 2 or pair.best is None:
        return False
    first, second = pair.bounds
    has_bounds = first.low < first.high and second.low < second.high
    return has_bounds and _meet(first, second)


def _meet(first: Interval, second: Interval) -> bool:
    return first.low <= second.high and second.low <= first.high


def _delta_words(metric: Metric, delta: float | None) -> str:
    if delta is None:
        return "—"
    if abs(delta) < 0.005:
        return "="
    return f"{delta * 100:+.0f}{'pt' if metric.unit == 'fraction' else '%'}"


def _verdicts(view: CompareView, width: int) -> tuple[Line, ...]:
    """A line an objective, and which plans were made for it."""
    lines = [line(Span(" VERDICT", "title"))]
    for verdict in view.whole.verdicts:
        made_for = [
            letter_of(index)
            for index, choice in enumerate(view.choices)
            if choice.plan.objective.kind == verdict.objective
        ]
        purpose = f" (what {list_words(made_for)} {'is' if len(made_for) == 1 else 'are'} for)" if made_for else ""
        mark = Span("=", "dim") if verdict.winner is None else Span(letter_of(verdict.winner), "ok")
        for row, text in enumerate(wrap(f"{verdict.reason}{purpose}", max(20, width - 17))):
            head = [Span(f" {fit(verdict.objective, 11)} "), mark, "  "] if row == 0 else [" " * 16]
            lines.append(line(*head, text))
    return tuple(lines)


# --- what it takes, and what it risks -----------------------------------------------------------------


def _moves(view: CompareView, width: int) -> tuple[Line, ...]:
    """Bytes to bring and how long that takes at most, then what each plan hangs on."""
    texts = [("A → " + letter_of(change.plan), _change_words(change)) for change in view.whole.changes]
    took = [
        f"{letter_of(index)} {seconds_words(seconds)}"
        for index, seconds in enumerate(view.took_s)
        if seconds is not None
    ]
    if took:
        texts.append(("applied", f"before, from its begin to its switch: {', '.join(took)}"))
    texts += [(f"risk {letter_of(index)}", risk_words(risk)) for index, risk in enumerate(view.whole.risks)]
    lines: list[Line] = []
    for name, text in texts:
        for row, part in enumerate(wrap(text, max(20, width - 10))):
            lines.append(line(Span(f" {fit(name if row == 0 else '', 7)} ", "title"), part))
    return tuple(lines)


def _change_words(change: PlanChange) -> str:
    if not change.layers_moved:
        return "no layer moves, nothing to bring"
    which = ", ".join(runs_words(change.layers_moved))
    parts = [f"layers {which} move, {bytes_words(change.bytes_to_move)} of weights to bring"]
    if change.bytes_to_move:
        by_host = [f"{host} {bytes_words(num_bytes)}" for host, num_bytes in change.bytes_by_host.items()]
        links = "measured links" if change.is_link_measured else "links not measured"
        parts.append(list_words(by_host, most=6))
        if change.fetch_s:
            parts.append(f"up to {seconds_words(change.fetch_s)} ({links}), then ranks start")
    if change.hosts_added:
        parts.append(f"adds {list_words(change.hosts_added)}")
    if change.hosts_removed:
        parts.append(f"drops {list_words(change.hosts_removed)}")
    return "; ".join(parts)


# --- hosts --------------------------------------------------------------------------------------------


def _hosts(view: CompareView, width: int, *, shows_all: bool) -> tuple[Line, ...]:
    """Layers and bytes of each host by plan: those that change, or all."""
    hosts = view.whole.hosts
    shown = [move for move in hosts if move.changes or shows_all]
    count = len(view.choices)
    name_cells = min(16, max(4, *(len(move.host) for move in hosts)) if hosts else 4)
    cells = max(11, min(24, (width - name_cells - 4) // count - 1))
    titles = "".join(f" {fit(f'{letter_of(index)} LAYERS, MEMORY', cells)}" for index in range(count))
    lines = [line(Span(f"   {fit('HOST', name_cells)}{titles}", "title"))]
    lines += [_host_line(move, name_cells, cells) for move in shown[:MOST_HOSTS]]
    if not shown:
        lines.append(line(Span("   no host changes", "dim")))
    if len(shown) > MOST_HOSTS:
        lines.append(
            line(Span(f"   and {len(shown) - MOST_HOSTS:,} more: odctl compare --json has them all", "dim"))
        )
    if hidden := len(hosts) - len(shown):
        lines.append(line(Span(f"   {hidden:,} more that stay as they are: d shows them", "dim")))
    return tuple(lines)


def _host_line(move: HostMove, name_cells: int, cells: int) -> Line:
    parts = [
        f" {fit(f'{_layers_words(layers)} {bytes_words(num_bytes)}' if layers else '—', cells)}"
        for layers, num_bytes in zip(move.layers, move.bytes, strict=True)
    ]
    mark = Span(" ≠ ", "warn") if move.changes else Span("   ")
    return line(mark, Span(fit(move.host, name_cells), "bold"), *parts)


def _layers_words(layers: tuple[Range, ...]) -> str:
    return ",".join(f"{first}-{end - 1}" if end - first > 1 else f"{first}" for first, end in layers)
