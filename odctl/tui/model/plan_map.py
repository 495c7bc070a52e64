"""Layers against hosts: a line a rank, with its memory and its time; ranks that are alike fold into one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from itertools import groupby

import msgspec

from agent.facts.cluster import DeviceFacts
from agent.planner.plan import Plan, RankPlace, rank_places
from agent.planner.words import bytes_words, list_words
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.bars import parts_bar
from odctl.tui.model.text import Line, Span, Tone, fit, line, wrap

_MEMORY_GLYPHS = "█▓▒░"
_MEMORY_TONES: tuple[Tone, ...] = ("bar", "kv", "activation", "dim")
LEGEND: Line = (
    Span(" █ weights ", "bar"),
    Span("▓ KV cache ", "kv"),
    Span("▒ activations ", "activation"),
    Span("░ headroom  · free", "dim"),
    Span("   ◀ bottleneck", "warn"),
)
FOLDS_ABOVE = 12
"""Ranks that a page shows one by one before it folds those that are alike."""

Device = tuple[str, str]
"""A host's name and its device's id."""
DeviceOf = Callable[[RankPlace], DeviceFacts | None]


class MapRow(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks that stand on one line: one, or several that hold as much of as many layers on devices of a kind.

    `places` are in order; they are of one replica.
    """

    places: tuple[RankPlace, ...]

    @property
    def first(self) -> RankPlace:
        return self.places[0]

    @property
    def layers(self) -> tuple[int, int]:
        return self.places[0].layers[0], self.places[-1].layers[1]

    @property
    def stages(self) -> tuple[int, int]:
        """First and last, both of them in."""
        return self.places[0].stage, self.places[-1].stage

    @property
    def title(self) -> str:
        """`r0s1t0`, or `s3`, `s0-79` where the line stands for more than a rank."""
        if len(self.places) == 1:
            return self.first.rank_id
        first, last = self.stages
        return f"s{first}" if first == last else f"s{first}-{last}"

    @property
    def device_name(self) -> str:
        """`gpu01/cuda:0`; `×8 gpu01/cuda:0-7`; `×80 gpu01 … gpu80`."""
        if len(self.places) == 1:
            return f"{self.first.shard.host}/{self.first.shard.device}"
        hosts = list(dict.fromkeys(place.shard.host for place in self.places))
        count = f"×{len(self.places)} "
        if len(hosts) > 1:
            return f"{count}{hosts[0]} … {hosts[-1]}"
        first, last = self.places[0].shard.device, self.places[-1].shard.device
        return f"{count}{hosts[0]}/{first}-{last.rpartition(':')[2]}"


class ReplicaRows(msgspec.Struct, frozen=True, kw_only=True):
    """A replica's lines, and the replicas that are like it in all but their hosts."""

    replica: int
    rows: tuple[MapRow, ...]
    alike: tuple[int, ...] = ()


def map_rows(plan: Plan, *, is_folded: bool) -> tuple[ReplicaRows, ...]:
    """Lines by replica. Folded, ranks of a stage, stages in a row and whole replicas that are alike become one."""
    by_replica = {
        replica: tuple(places) for replica, places in groupby(rank_places(plan), key=lambda place: place.replica)
    }
    if not is_folded:
        return tuple(
            ReplicaRows(replica=replica, rows=tuple(MapRow(places=(place,)) for place in places))
            for replica, places in by_replica.items()
        )
    shown: dict[Hashable, int] = {}
    alike: dict[int, list[int]] = {}
    for replica, places in by_replica.items():
        likeness = tuple((place.layers, _likeness(place)) for place in places)
        first = shown.setdefault(likeness, replica)
        alike.setdefault(first, []).append(replica)
    return tuple(
        ReplicaRows(replica=replica, rows=_folded(by_replica[replica]), alike=tuple(others[1:]))
        for replica, others in alike.items()
    )


def _folded(places: Sequence[RankPlace]) -> tuple[MapRow, ...]:
    stages = [tuple(ranks) for _, ranks in groupby(places, key=lambda place: place.stage)]
    rows: list[MapRow] = []
    for _, alike in groupby(stages, key=_stage_likeness):
        together = [place for ranks in alike for place in ranks]
        if len({_likeness(place) for place in together}) == 1:
            rows.append(MapRow(places=tuple(together)))
        else:  # the ranks of a group differ: each keeps its line
            rows += [MapRow(places=(place,)) for place in together]
    return tuple(rows)


def _stage_likeness(ranks: tuple[RankPlace, ...]) -> Hashable:
    first, end = ranks[0].layers
    return end - first, tuple(_likeness(place) for place in ranks)


def _likeness(place: RankPlace) -> Hashable:
    """What two ranks share that are told on one line: memory to the byte, and the kind of device."""
    held = place.shard.bytes
    kind = place.shard.device.partition(":")[0]
    return held.weights, held.kv_cache, held.activations, held.headroom, kind


class _Drawing:
    """What a map is drawn from. Plans are compared by identity: a screen shows the same value second by second."""

    def __init__(
        self, plan: Plan, devices: dict[Device, DeviceFacts], *, width: int, is_folded: bool, added: frozenset[str]
    ) -> None:
        self.plan = plan
        self.devices = devices
        self.width = width
        self.is_folded = is_folded
        self.added = added

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Drawing):
            return NotImplemented
        how, others = (self.width, self.is_folded, self.added), (other.width, other.is_folded, other.added)
        return self.plan is other.plan and how == others and self.devices == other.devices

    def __hash__(self) -> int:
        return hash((id(self.plan), self.width, self.is_folded, self.added))

    def device(self, place: RankPlace) -> DeviceFacts | None:
        return self.devices.get((place.shard.host, place.shard.device))


def layer_map(
    plan: Plan, snapshot: FleetSnapshot | None, *, width: int, is_folded: bool, added: frozenset[str] = frozenset()
) -> tuple[Line, ...]:
    """The map as it stands on a page. Hosts that are `added` to what runs have a `+`.

    A plan of thousands of ranks is drawn once, and again when the facts of a device of it change.
    """
    wanted = set(plan.hosts)
    hosts = [host.facts for host in (snapshot.hosts if snapshot else ()) if host.name in wanted and host.facts]
    devices = {(host.name, device.id): device for host in hosts for device in host.devices}
    return _drawn(_Drawing(plan, devices, width=width, is_folded=is_folded, added=added))


@lru_cache(maxsize=4)
def _drawn(drawing: _Drawing) -> tuple[Line, ...]:
    plan, width = drawing.plan, drawing.width
    groups = map_rows(plan, is_folded=drawing.is_folded)
    num_layers = max(place.layers[1] for place in rank_places(plan))
    bar_cells = 12 if width < 100 else 24
    longest = max(len(row.device_name) for group in groups for row in group.rows)
    name_cells = min(16 if width < 100 else 28, max(11, longest))
    cells = map_width(num_layers, room=max(8, width - name_cells - bar_cells - 38))
    slowest = slowest_stage(plan)
    lines: list[Line] = []
    for group in groups:
        if len(plan.replicas) > 1:
            lines += _replica_title(plan, group, width)
        header = f" {'RANK':<7} {fit('HOST/DEVICE', name_cells)} {ruler(num_layers, cells)} "
        lines.append(line(Span(f"{header}{fit('MEMORY', bar_cells)} {'NEEDS / USABLE':>17} {'ms':>6}", "title")))
        for row in group.rows:
            fullest = _fullest(row, drawing.device)
            is_new = any(place.shard.host in drawing.added for place in row.places)
            lines.append(
                line(
                    f" {fit(row.title, 7)} ",
                    Span(fit(row.device_name, name_cells), "bold"),
                    Span("+" if is_new else " ", "ok"),
                    *row_layer_spans(row, num_layers, cells),
                    " ",
                    *memory_spans(fullest, drawing.device(fullest), bar_cells),
                    *_row_time(plan, row, slowest),
                )
            )
    return (*lines, (*LEGEND, Span("  + new host", "ok")) if drawing.added else LEGEND)


def _replica_title(plan: Plan, group: ReplicaRows, width: int) -> list[Line]:
    """Which replica it is, and where those stand that are alike."""
    count = f"  ×{len(group.alike) + 1} alike" if group.alike else ""
    lines = [line(Span(f" replica {group.replica}", "title"), Span(count, "key"))]
    if group.alike:
        said = [f"{replica} on {list_words(_hosts_of(plan, replica), most=4)}" for replica in group.alike]
        lines += [line(Span(f"   {text}", "dim")) for text in wrap("; ".join(said), width - 4)[:3]]
    return lines


def _hosts_of(plan: Plan, replica: int) -> tuple[str, ...]:
    stages = plan.replicas[replica].stages
    return tuple(dict.fromkeys(shard.host for stage in stages for shard in stage.shards))


def _row_time(plan: Plan, row: MapRow, slowest: int | None) -> tuple[Span, ...]:
    """The longest of the line's stages, which has the mark if it is the longest of all."""
    stage_s = plan.predicted.stage_s
    first, last = row.stages
    within = [stage for stage in range(first, last + 1) if stage < len(stage_s)]
    if row.first.replica != 0 or not within:
        return stage_time(plan, row.first, is_slowest=False)
    longest = max(within, key=lambda stage: stage_s[stage])
    place = next(place for place in row.places if place.stage == longest)
    return stage_time(plan, place, is_slowest=longest == slowest)


def _fullest(row: MapRow, devices: DeviceOf) -> RankPlace:
    """The rank that has the least room beside it: what the line's memory is shown of."""

    def room(place: RankPlace) -> float:
        device = devices(place)
        return device.usable_bytes - place.shard.bytes.total if device is not None else float("inf")

    return min(row.places, key=room)


# --- one line's parts, which the editor shows too -----------------------------------------------------


def map_width(num_layers: int, *, room: int) -> int:
    """A whole number of cells a layer where there is room, at most four; else all the room."""
    return num_layers * min(4, room // num_layers) if num_layers <= room else room


def ruler(num_layers: int, cells: int) -> str:
    """`0 … 31`: first and last layer at the ends of the map."""
    last = str(num_layers - 1)
    return fit("0" + last.rjust(cells - 1) if cells > len(last) + 1 else "LAYERS", cells)


def layer_spans(place: RankPlace, num_layers: int, cells: int) -> tuple[Span, ...]:
    """Where a rank's layers lie among all; followers of a tensor-parallel group are drawn lighter."""
    return _layers(place.layers, num_layers, cells, glyph="█" if place.tensor_index == 0 else "▒")


def row_layer_spans(row: MapRow, num_layers: int, cells: int) -> tuple[Span, ...]:
    """Where a line's layers lie. Of several stages every other one is lighter, where there are cells for it."""
    if len(row.places) == 1:
        return layer_spans(row.first, num_layers, cells)
    before, drawn, after = _layers(row.layers, num_layers, cells, glyph="█")
    first, last = row.stages
    if last - first + 1 > len(drawn.text):
        return before, drawn, after
    glyphs = ["█"] * len(drawn.text)
    for place in row.places:
        if (place.stage - first) % 2:
            begin, end = (_cell(layer, num_layers, cells) - len(before.text) for layer in place.layers)
            glyphs[begin:end] = "▓" * len(glyphs[begin:end])
    return before, Span("".join(glyphs), drawn.tone), after


def _cell(layer: int, num_layers: int, cells: int) -> int:
    return round(layer * cells / num_layers)


def _layers(layers: tuple[int, int], num_layers: int, cells: int, *, glyph: str) -> tuple[Span, Span, Span]:
    first, end = (_cell(layer, num_layers, cells) for layer in layers)
    end = min(cells, max(end, first + 1))
    first = min(first, end - 1)
    return Span("·" * first, "dim"), Span(glyph * (end - first), "bar"), Span("·" * (cells - end), "dim")


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


def folds(plan: Plan) -> bool:
    """Whether a page has something to fold, and more ranks than it shows one by one."""
    return len(rank_places(plan)) > FOLDS_ABOVE
