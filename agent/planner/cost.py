"""How long a step takes: roofline per stage, latency and rate per link, and what follows for a deployment. Pure.

Units are bytes, seconds and FLOP. Sources: the roofline and its constants as in `planner.rates`; ring and tree
all-reduce after Thakur, Rabenseifner and Gropp (2005); pipeline terms as in GPipe (Huang et al., 2019).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import msgspec

from agent.facts.cluster import DeviceFacts, LinkFacts
from agent.facts.model import DTYPE_BYTES, Dtype, ModelSpec, Quantisation
from agent.planner import rehearsal
from agent.planner.calibration import (
    PRIOR,
    Calibration,
    HostPair,
    Parts,
    correction,
    over_links,
    scale_parts,
    seconds_of,
    sum_parts,
)
from agent.planner.carriers import DIRECT_SUM_BYTES, CarrierKind, carrier_of
from agent.planner.layout import Layout, Place, Share, StageLayout, cut_shares
from agent.planner.plan import BLOCK_TOKENS, Serving
from agent.planner.rates import (
    CARRIERS,
    REQUEST_S,
    WARM_REQUEST_S,
    DeviceRates,
    LinkTable,
    rates_of,
    slowness_of,
    turn_s,
)
from agent.planner.shards import dense_columns, weight_bytes
from agent.planner.step_cost import count_micro_batches, cut_prompt
from agent.planner.step_shape import StepShape

FLOAT32_BYTES = 4
EXPERT_OVERHEAD = 0.3
"""Launching one expert's kernels, in launches of a layer's.

On one CPU thread a dense layer of hidden size 256 took 340 us, and each further expert of a token 116 us in the
same run, of which reading it is 16.
"""


REQUEST_PART = "request"
RIDING_ALONG = 2.0
"""A product that takes less than this many times as long as with one row is bound by reading its weights."""


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a stage as a line: `layer_s * layers`, plus what only a first or a last stage does."""

    layer_s: float
    first_s: float
    last_s: float
    layer_reads_s: float
    """Of `layer_s`, reading memory."""
    layer_flops_s: float
    """Of `layer_s`, arithmetic (it overlaps with reading)."""
    layer_reduce_s: float
    """Of `layer_s`, all-reduces of the tensor-parallel group."""
    layer_experts_s: float = 0.0
    """Of `layer_s`, launching experts beside the layer's own kernels."""
    head_s: float = 0.0
    """Of `last_s`, the head's matrix: reading it, in a decode step."""
    gather_s: float = 0.0
    """Of `last_s`, collecting the logits from the group."""
    turn_s: float = 0.0
    """Of `last_s`, what passes until the next step: the stage's devices do nothing meanwhile."""
    device: str = "cpu"
    """What the constants of the slowest rank are called: `cuda`, `cpu`, `unprobed cpu`."""
    carrier: str = "tls"
    crossed: tuple[HostPair, ...] = ()
    """The links between hosts that its group's sums go over."""
    bytes_share: float = 0.0
    """Of these sums' time, what goes with their size; sums within a host have one constant for all of it."""
    flops_part: str = "decode_flops"
    rests: tuple[tuple[float, float], ...] = ()
    """(seconds without work, seconds that a layer takes longer then); empty where that is not known."""
    idle_watts: float = 0.0
    """Of all its devices together."""
    busy_watts: float = 0.0

    def parts(self, num_layers: int, *, first: bool, last: bool) -> dict[str, float]:
        """`stage_s` by what the seconds are spent on; of reading and arithmetic, the longer one."""
        is_reading = self.layer_reads_s >= self.layer_flops_s
        busy_s = num_layers * max(self.layer_reads_s, self.layer_flops_s)
        launches_s = self.layer_s - max(self.layer_reads_s, self.layer_flops_s) - self.layer_reduce_s
        reduce_s = self.layer_reduce_s / 2
        embed_s = self.first_s - reduce_s
        spent = {
            f"{self.device} reads": is_reading * busy_s + first * embed_s + last * self.head_s,
            f"{self.device} {self.flops_part}": (not is_reading) * busy_s,
            f"{self.device} launches": num_layers * (launches_s - self.layer_experts_s),
            f"{self.device} experts": num_layers * self.layer_experts_s,
            "step": last * (self.last_s - self.head_s - self.gather_s),
        }
        sums_s = num_layers * self.layer_reduce_s + first * reduce_s + last * self.gather_s
        spent |= over_links(f"{self.carrier} reduces", sums_s * (1 - self.bytes_share), self.crossed)
        spent |= over_links(f"{self.carrier} reduced_bytes", sums_s * self.bytes_share, self.crossed)
        return {name: seconds for name, seconds in spent.items() if seconds > 0}

    def stage_s(self, num_layers: int, *, first: bool, last: bool) -> float:
        return num_layers * self.layer_s + first * self.first_s + last * self.last_s

    @property
    def limit(self) -> str:
        """What bounds it, in words."""
        if self.layer_reduce_s > self.layer_s / 2:
            return "links of its tensor-parallel group"
        if max(self.layer_reads_s, self.layer_flops_s) + self.layer_reduce_s < self.layer_s / 2:
            return "per-layer overhead"
        return "memory bandwidth" if self.layer_reads_s >= self.layer_flops_s else "compute"


# --- one rank -----------------------------------------------------------------------------------------


def layer_parameters(spec: ModelSpec, share: Share, *, num_experts: float) -> float:
    """Matrix elements of one layer that a rank uses: queries, keys, values, output, and gated MLPs.

    Of a layer with experts those of `num_experts` count, and the router; layers that differ are averaged.
    """
    heads = share.heads[1] - share.heads[0]
    kv_heads = share.kv_heads[1] - share.kv_heads[0]
    attention = 2 * heads * spec.head_size + 2 * kv_heads * spec.head_size
    columns = share.columns[1] - share.columns[0]
    if not spec.num_experts:
        return spec.hidden_size * (attention + 3 * columns)
    begin, end = dense_columns(spec, share.columns)
    dense_part = len(spec.dense_layers) / spec.num_layers
    sparse = spec.num_experts + 3 * columns * num_experts
    return spec.hidden_size * (attention + (1 - dense_part) * sparse + dense_part * 3 * (end - begin))


def covered_experts(spec: ModelSpec, rows: int) -> float:
    """Experts of a layer that some row of a step has chosen: E * (1 - (1 - k/E)^rows).

    The expected occupancy when each row draws k of E experts evenly. Real routers are less even, which covers fewer
    (the term is concave in each expert's likelihood), so reading is estimated from above.
    """
    return expert_coverage(spec.num_experts, spec.experts_per_token, rows)


def expert_coverage(num_experts: int, experts_per_token: int, rows: float) -> float:
    """E * (1 - (1 - k/E)^rows); 0 for a model without experts."""
    if not num_experts:
        return 0.0
    missed: float = (1 - experts_per_token / num_experts) ** rows
    return num_experts * (1 - missed)


def layer_overheads(spec: ModelSpec, step: StepShape) -> float:
    """What launching a layer's kernels takes, averaged over layers, in launches of a dense one."""
    if not spec.num_experts:
        return 1.0
    sparse_part = 1 - len(spec.dense_layers) / spec.num_layers
    return 1 + EXPERT_OVERHEAD * sparse_part * covered_experts(spec, step.rows)


def attended_positions(spec: ModelSpec, context: int) -> float:
    """Positions that a query attends to, averaged over layers: a sliding window caps them where it holds."""
    if spec.sliding_window is None:
        return context
    windowed = 1 - len(spec.full_layers) / spec.num_layers
    return windowed * min(context, spec.sliding_window) + (1 - windowed) * context


def layer_read_bytes(
    spec: ModelSpec, share: Share, step: StepShape, dtype: Dtype, quantisation: Quantisation = "none"
) -> float:
    """Bytes that a rank reads for one layer: its weights once, and the KV cache of every sequence.

    Of experts, those that the step's rows have chosen.
    """
    kv_heads = share.kv_heads[1] - share.kv_heads[0]
    positions = attended_positions(spec, step.context)
    kv_elements = 2 * step.sequences * positions * kv_heads * spec.head_size
    weights = layer_parameters(spec, share, num_experts=covered_experts(spec, step.rows))
    return weights * weight_bytes(dtype, quantisation) + kv_elements * DTYPE_BYTES[dtype]


def layer_flops(spec: ModelSpec, share: Share, step: StepShape) -> float:
    """FLOP of a rank for one layer: 2 per weight and row, 4 per attended position, head element and row.

    For a prefill chunk `context` is the mean number of positions that its rows attend to. A row is multiplied with
    its own experts alone.
    """
    heads = share.heads[1] - share.heads[0]
    weights = layer_parameters(spec, share, num_experts=spec.experts_per_token)
    attention = attended_positions(spec, step.attended) * heads * spec.head_size
    return 2 * step.rows * weights + 4 * step.rows * attention


def layer_products(spec: ModelSpec, share: Share, rows: int) -> list[tuple[float, float]]:
    """(matrix elements, rows that each is multiplied with) of a rank's layer.

    A covered expert gets its part of the rows' choices.
    """
    dense = layer_parameters(spec, share, num_experts=0)
    if not spec.num_experts:
        return [(dense, rows)]
    covered = covered_experts(spec, rows)
    sparse = layer_parameters(spec, share, num_experts=covered) - dense
    return [(dense, rows), (sparse, rows * spec.experts_per_token / covered)]


def measured_layer_s(
    spec: ModelSpec, share: Share, step: StepShape, dtype: Dtype, rates: DeviceRates
) -> tuple[float, float]:
    """`roofline_s` of a layer where products were measured; keys and values are read, or computed with, besides.

    While rows ride along with the reading, up to twice the time of one, all of it counts as reading.
    """
    products = layer_products(spec, share, step.rows)
    kv_heads = share.kv_heads[1] - share.kv_heads[0]
    heads = share.heads[1] - share.heads[0]
    positions = attended_positions(spec, step.context)
    cache_bytes = 2 * step.sequences * positions * kv_heads * spec.head_size * DTYPE_BYTES[dtype]
    flops = 4 * step.rows * attended_positions(spec, step.attended) * heads * spec.head_size
    cache_s = cache_bytes / rates.read_bytes_per_s
    flops_per_s = rates.prefill_flops_per_s if step.is_prefill else rates.decode_flops_per_s
    one_row_s = sum(elements for elements, _ in products) * rates.product_s(1)
    products_s = sum(elements * rates.product_s(rows) for elements, rows in products)
    all_s = products_s + max(cache_s, flops / flops_per_s)
    return (all_s if all_s <= RIDING_ALONG * (one_row_s + cache_s) else one_row_s + cache_s), all_s


def roofline_s(read_bytes: float, flops: float, rates: DeviceRates, *, is_prefill: bool) -> tuple[float, float]:
    """Seconds of reading and seconds of arithmetic; the longer one counts (Williams et al., 2009)."""
    flops_per_s = rates.prefill_flops_per_s if is_prefill else rates.decode_flops_per_s
    return read_bytes / rates.read_bytes_per_s, flops / flops_per_s


# --- links --------------------------------------------------------------------------------------------


def transfer_s(link: LinkFacts, num_bytes: int) -> float:
    """Seconds for a message over a link: alpha + n / beta (Hockney, 1994)."""
    return link.latency_s + num_bytes / link.bytes_per_s


def all_reduce_s(link: LinkFacts, num_bytes: int, group_size: int, *, carrier: CarrierKind) -> float:
    """Seconds of one all-reduce among `group_size` ranks over their slowest link.

    Sockets: two ranks exchange, more send everybody everything up to `DIRECT_SUM_BYTES` and sum parts above it.
    torch.distributed: the faster of ring and tree.
    """
    if group_size == 1:
        return 0.0
    p, alpha, beta, own = group_size, link.latency_s, link.bytes_per_s, CARRIERS[carrier]
    if carrier in ("tls", "tcp", "unix"):
        is_one_hop = p == 2 or num_bytes <= DIRECT_SUM_BYTES
        hops, crossing = (1, (p - 1) * num_bytes) if is_one_hop else (2, 2 * (p - 1) / p * num_bytes)
        if link.carrier == carrier and link.sums:
            # measured between two, where it is one hop of n bytes
            return hops * rehearsal.on_line(link.sums, crossing / hops)
        per_byte = own.seconds_per_byte if link.carrier is None else 0.0
        return own.all_reduce_s + hops * alpha + crossing * (1 / beta + per_byte)
    ring = 2 * (p - 1) * alpha + 2 * (p - 1) / p * num_bytes / beta
    tree = 2 * math.ceil(math.log2(p)) * alpha + 2 * num_bytes / beta
    return own.all_reduce_s + min(ring, tree)


def all_gather_s(link: LinkFacts, num_bytes: int, group_size: int) -> float:
    """Seconds until every rank has all `num_bytes`, of which each brought its part (ring)."""
    return (group_size - 1) * (link.latency_s + num_bytes / group_size / link.bytes_per_s)


def group_link(places: Sequence[Place], links: LinkTable) -> LinkFacts:
    """The slowest latency, the slowest rate and the slowest sums between any two members of a group."""
    pairs = [
        links.between(a.host, b.host, a.device.kind if a.device.kind == b.device.kind else "cpu")
        for a in places
        for b in places
        if a is not b
    ]
    carriers = {link.carrier for link in pairs}
    sums = [dict(link.sums) for link in pairs]
    sizes = sorted(set(sums[0]).intersection(*sums)) if sums else []
    return LinkFacts(
        source=places[0].host,
        target=places[-1].host,
        latency_s=max((link.latency_s for link in pairs), default=0.0),
        bytes_per_s=min((link.bytes_per_s for link in pairs), default=math.inf),
        carrier=carriers.pop() if len(carriers) == 1 else None,
        sums=tuple((size, max(of_pair[size] for of_pair in sums)) for size in sizes),
    )


def carrier_between(places: Sequence[Place], links: LinkTable) -> CarrierKind:
    """The carrier of a link or a group with these ends, as the supervisor will name it."""
    ends = [(place.host, place.device.id) for place in places]
    return carrier_of(ends, is_network_trusted=links.is_network_trusted)


def hop_s(sender: StageLayout, receiver: StageLayout, num_bytes: int, links: LinkTable) -> float:
    """Seconds from one stage to the next: the slowest of the links between them, and what its carrier takes."""
    pairs = hop_pairs(sender, receiver)
    return max(
        transfer_s(link, num_bytes) + own_message_s(link, carrier_between((a, b), links), num_bytes)
        for a, b in pairs
        for link in (link_between(a, b, links),)
    )


class HopCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from one stage to the next, before any correction."""

    seconds: float
    waits_s: float
    """Of them, what a message takes whatever its size."""
    send_s: float
    """Of them, what keeps the sender busy: bytes on the wire, not latency."""
    carrier: CarrierKind

    def parts(self, sender: StageLayout, receiver: StageLayout) -> dict[str, float]:
        """What a message takes whatever its size, and what its bytes do; within a host, one for both."""
        crossed = crossed_links(hop_pairs(sender, receiver))
        if not crossed:
            return {f"{self.carrier} messages": self.seconds}
        return over_links(f"{self.carrier} messages", self.waits_s, crossed) | over_links(
            f"{self.carrier} message_bytes", self.seconds - self.waits_s, crossed
        )


def hop_cost(sender: StageLayout, receiver: StageLayout, num_bytes: int, links: LinkTable) -> HopCost:
    """What a message of so many bytes takes from one stage to the next."""
    seconds = hop_s(sender, receiver, num_bytes, links)
    return HopCost(
        seconds=seconds,
        waits_s=min(seconds, hop_s(sender, receiver, 0, links)),
        send_s=num_bytes / hop_link(sender, receiver, links).bytes_per_s,
        carrier=carrier_between((sender.places[0], receiver.places[0]), links),
    )


def message_s(carrier: CarrierKind, num_bytes: int) -> float:
    """Seconds that a carrier takes by itself for a message of a pipeline link."""
    return CARRIERS[carrier].message_s + num_bytes * CARRIERS[carrier].seconds_per_byte


def crossed_links(pairs: Iterable[tuple[Place, Place]]) -> tuple[HostPair, ...]:
    """The links between hosts among these, each once, whatever its direction."""
    return tuple(sorted({(min(a.host, b.host), max(a.host, b.host)) for a, b in pairs if a.host != b.host}))


def own_message_s(link: LinkFacts, carrier: CarrierKind, num_bytes: int) -> float:
    """The same, but nothing where the link was measured with a carrier: its own time is in the link's figures."""
    return message_s(carrier, num_bytes) if link.carrier is None else 0.0


def hop_pairs(sender: StageLayout, receiver: StageLayout) -> list[tuple[Place, Place]]:
    """Who sends hidden states to whom: rank j of the receiving stage hears rank j modulo the sender's size."""
    return [(sender.places[index % len(sender.places)], place) for index, place in enumerate(receiver.places)]


def hop_link(sender: StageLayout, receiver: StageLayout, links: LinkTable) -> LinkFacts:
    """The slowest of the links that carry hidden states between two stages."""
    pairs = hop_pairs(sender, receiver)
    return max((link_between(a, b, links) for a, b in pairs), key=lambda link: transfer_s(link, 16384))


def link_between(a: Place, b: Place, links: LinkTable) -> LinkFacts:
    kind = a.device.kind if a.device.kind == b.device.kind else "cpu"
    return links.between(a.host, b.host, kind)


# --- one stage ----------------------------------------------------------------------------------------


def stage_cost(
    spec: ModelSpec,
    places: Sequence[Place],
    units: Sequence[int],
    *,
    step: StepShape,
    dtype: Dtype,
    links: LinkTable,
    quantisation: Quantisation = "none",
) -> StageCost:
    """Seconds per layer, and of the first's and last's extra work, for a group with these shares.

    The slowest rank governs. Two all-reduces of `rows * hidden` elements follow each layer, one the embedding, and
    an all-gather of float32 logits the head.
    """
    element = DTYPE_BYTES[dtype]
    p = len(places)
    rates_of_ranks = [rates_of(place.device, dtype, quantisation) for place in places]
    own_turn_s = turn_s(step.sampled, slowness=slowness_of(places[0].device.kind, rates_of_ranks[0]))
    link = group_link(places, links)
    carrier = carrier_between(places, links)
    reduce_s = all_reduce_s(link, step.rows * spec.hidden_size * element, p, carrier=carrier)
    crossed = crossed_links(itertools.combinations(places, 2))
    waits_s = all_reduce_s(link, 0, p, carrier=carrier)
    head_s = embed_s = idle_watts = busy_watts = 0.0
    slowest: RankCost | None = None
    for place, share, rates in zip(places, cut_shares(spec, units), rates_of_ranks, strict=True):
        idle_watts, busy_watts = idle_watts + rates.idle_watts, busy_watts + rates.busy_watts
        rank = rank_cost(spec, place.device, share, step=step, dtype=dtype, quantisation=quantisation, rates=rates)
        if slowest is None or rank.layer_s > slowest.layer_s:
            slowest = rank
        head_s = max(head_s, rank.head_s)
        embed_s = max(embed_s, step.rows * spec.hidden_size * element / rates.read_bytes_per_s)
    assert slowest is not None, "a stage has devices"
    gather_s = all_gather_s(link, step.sampled * spec.vocab_size * FLOAT32_BYTES, p) if step.sampled else 0.0
    return StageCost(
        layer_s=slowest.layer_s + 2 * reduce_s,
        first_s=embed_s + reduce_s,
        last_s=head_s + gather_s + own_turn_s,
        turn_s=own_turn_s,
        layer_reads_s=slowest.reads_s,
        layer_flops_s=slowest.flops_s,
        layer_reduce_s=2 * reduce_s,
        layer_experts_s=slowest.experts_s,
        head_s=head_s,
        gather_s=gather_s,
        device=slowest.device,
        carrier=carrier,
        crossed=crossed,
        bytes_share=max(0.0, 1 - waits_s / reduce_s) if crossed and reduce_s > 0 else 0.0,
        flops_part="prefill_flops" if step.is_prefill else "decode_flops",
        rests=slowest.rests,
        idle_watts=idle_watts,
        busy_watts=busy_watts,
    )


class RankCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one rank's share of a layer, and of the head where rows are drawn from; its group left out."""

    reads_s: float
    flops_s: float
    """Arithmetic, beside the reading: the longer one counts."""
    launches_s: float
    experts_s: float
    """Of `launches_s`, those of experts."""
    head_s: float = 0.0
    device: str = "cpu"
    """What its constants are called."""
    rests: tuple[tuple[float, float], ...] = ()

    @property
    def layer_s(self) -> float:
        return max(self.reads_s, self.flops_s) + self.launches_s


def rank_cost(
    spec: ModelSpec,
    device: DeviceFacts,
    share: Share,
    *,
    step: StepShape,
    dtype: Dtype,
    quantisation: Quantisation = "none",
    rates: DeviceRates | None = None,
) -> RankCost:
    """By the roofline, or at the level of the model's rehearsal where the device has seen one.

    `rates` are the device's, where the caller has them already.
    """
    rates = rates or rates_of(device, dtype, quantisation)
    modelled = _modelled_rank(spec, share, step, dtype=dtype, quantisation=quantisation, rates=rates)
    kv_heads = share.kv_heads[1] - share.kv_heads[0]
    known = rehearsal.rehearsal_of(device.probe, spec, dtype, quantisation, parts=spec.num_kv_heads / kv_heads)
    if known is None or device.probe is None:
        kind: str = device.kind if rates.is_measured or device.kind == "cuda" else f"unprobed {device.kind}"
        return msgspec.structs.replace(modelled, device=kind)
    rehearsed_share = cut_shares(spec, [spec.num_kv_heads // known.parts] * known.parts)[0]

    def modelled_s(shape: StepShape) -> float:
        return _modelled_rank(
            spec, rehearsed_share, shape, dtype=dtype, quantisation=quantisation, rates=rates
        ).layer_s

    layers_alone = msgspec.structs.replace(step, sampled=0)
    filled_to = rehearsal.rows_at_once(device.probe, dtype, quantisation)
    level = rehearsal.layer_s(known, layers_alone, modelled_s, filled_to=filled_to) / modelled_s(layers_alone)
    vocab = share.vocab[1] - share.vocab[0]
    vocab_share = vocab / (rehearsed_share.vocab[1] - rehearsed_share.vocab[0])
    return RankCost(
        reads_s=level * modelled.reads_s,
        flops_s=level * modelled.flops_s,
        launches_s=level * modelled.launches_s,
        experts_s=level * modelled.experts_s,
        head_s=rehearsal.head_s(known, step.sampled, share=vocab_share) if step.sampled else 0.0,
        device=f"rehearsed {device.kind}",
        rests=rehearsal.rests_of(known),
    )


def _modelled_rank(
    spec: ModelSpec,
    share: Share,
    step: StepShape,
    *,
    dtype: Dtype,
    quantisation: Quantisation,
    rates: DeviceRates,
) -> RankCost:
    if rates.products:
        reads_s, flops_s = measured_layer_s(spec, share, step, dtype, rates)
    else:
        read_bytes = layer_read_bytes(spec, share, step, dtype, quantisation)
        flops = layer_flops(spec, share, step)
        reads_s, flops_s = roofline_s(read_bytes, flops, rates, is_prefill=step.is_prefill)
    overheads = layer_overheads(spec, step)
    head_s = 0.0
    if step.sampled:
        head_elements = (share.vocab[1] - share.vocab[0]) * spec.hidden_size
        if rates.products:
            head_s = head_elements * rates.product_s(step.sampled)
        else:
            head_bytes = head_elements * weight_bytes(dtype, quantisation)
            head_s = max(roofline_s(head_bytes, 2 * step.sampled * head_elements, rates, is_prefill=False))
    return RankCost(
        reads_s=reads_s,
        flops_s=flops_s,
        launches_s=rates.layer_overhead_s * overheads + rates.sequence_overhead_s * (step.sequences - 1),
        experts_s=rates.layer_overhead_s * (overheads - 1),
        head_s=head_s,
    )


def decode_step(batch: int, prompt_tokens: int) -> StepShape:
    """One token for each of `batch` sequences whose context is the prompt."""
    return StepShape(rows=batch, sequences=batch, context=prompt_tokens, sampled=batch)


def count_chunks(serving: Serving, prompt_tokens: int, num_stages: int = 1) -> int:
    """Steps that a prompt takes, as the scheduler cuts it."""
    limit = max(serving.prefill_chunk, serving.batch)
    return math.ceil(prompt_tokens / cut_prompt(prompt_tokens, num_stages, limit))


def prefill_step(serving: Serving, prompt_tokens: int, num_stages: int = 1, *, is_last: bool = True) -> StepShape:
    """One of a prompt's chunks, all taken as equal; its rows attend to half of the prompt on average (causal)."""
    rows = math.ceil(prompt_tokens / count_chunks(serving, prompt_tokens, num_stages))
    return StepShape(rows=rows, sequences=1, context=max(1, prompt_tokens // 2), sampled=int(is_last))


class StageCosts:
    """`stage_cost` and `hop_cost` for one model and precision, remembered: a device costs what its kind costs."""

    def __init__(
        self, spec: ModelSpec, links: LinkTable, *, dtype: Dtype, quantisation: Quantisation = "none"
    ) -> None:
        self._spec = spec
        self._links = links
        self._dtype = dtype
        self._quantisation = quantisation
        self._known: dict[Hashable, StageCost] = {}
        self._hops: dict[Hashable, HopCost] = {}
        self._kinds: dict[DeviceFacts, int] = {}
        self._kind_of: dict[DeviceFacts, int] = {}

    def of(self, stage: StageLayout, step: StepShape) -> StageCost:
        """Of a stage of these devices and shares, whatever its layers."""
        hosts = () if len(stage.places) == 1 else tuple(place.host for place in stage.places)
        key = (tuple(self.kind(place.device) for place in stage.places), hosts, stage.units, step)
        if key not in self._known:
            self._known[key] = stage_cost(
                self._spec,
                stage.places,
                stage.units,
                step=step,
                dtype=self._dtype,
                links=self._links,
                quantisation=self._quantisation,
            )
        return self._known[key]

    def hop(self, sender: StageLayout, receiver: StageLayout, num_bytes: int) -> HopCost:
        """Between two stages; where no fact tells links apart, hosts count by whether they are the same."""
        ends = tuple(
            (a.device.kind, b.device.kind, a.host == b.host if self._links.are_equal else (a.host, b.host))
            for a, b in hop_pairs(sender, receiver)
        )
        if (ends, num_bytes) not in self._hops:
            self._hops[ends, num_bytes] = hop_cost(sender, receiver, num_bytes, self._links)
        return self._hops[ends, num_bytes]

    def kind(self, device: DeviceFacts) -> int:
        """A number for devices that differ in nothing but their id."""
        if device not in self._kind_of:
            nameless = msgspec.structs.replace(device, id="")
            self._kind_of[device] = self._kinds.setdefault(nameless, len(self._kinds))
        return self._kind_of[device]


# --- a whole replica ----------------------------------------------------------------------------------


class PipelineTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one micro-batch through a replica, in seconds."""

    stages: tuple[float, ...]
    hops: tuple[float, ...]
    """From each stage to the next."""
    sends: tuple[float, ...]
    """Of each stage, the part of its hop that keeps the sender busy (bytes on the wire, not latency)."""
    layout: Layout = Layout(stages=())
    costs: tuple[StageCost, ...] = ()
    """Of each stage, what its seconds come from, before any correction."""
    hop_costs: tuple[HopCost, ...] = ()
    longer_s: tuple[float, ...] = ()
    """Of each stage, what it takes longer because its ranks had nothing to do before; none where that is empty."""

    def stage_parts(self, stage: int) -> Parts:
        """Its seconds by what they are spent on, before any correction."""
        num_layers, cost = self.layout.stages[stage].num_layers, self.costs[stage]
        parts = cost.parts(num_layers, first=stage == 0, last=stage == len(self.costs) - 1)
        more = self.longer_s[stage] if self.longer_s else 0.0
        return sum_parts(parts, {f"{cost.device} rests": more}) if more > 0 else parts

    def hop_parts(self, hop: int) -> Parts:
        """Of the hop from stage number `hop` to the next."""
        return self.hop_costs[hop].parts(*self.layout.stages[hop : hop + 2])

    @property
    def parts(self) -> dict[str, float]:
        """Of one micro-batch through all stages."""
        stages = (self.stage_parts(stage) for stage in range(len(self.costs)))
        return sum_parts(*stages, *(self.hop_parts(hop) for hop in range(len(self.hop_costs))))

    def corrected(self, calibration: Calibration) -> PipelineTimes:
        """The same with constants as measured runs corrected them."""
        if not calibration.corrections:
            return self
        hops = [correction(self.hop_parts(hop), calibration) for hop in range(len(self.hop_costs))]
        stages = [correction(self.stage_parts(stage), calibration) for stage in range(len(self.costs))]
        return msgspec.structs.replace(
            self,
            stages=tuple(seconds * by for seconds, by in zip(self.stages, stages, strict=True)),
            hops=tuple(seconds * by for seconds, by in zip(self.hops, hops, strict=True)),
            sends=tuple(seconds * by for seconds, by in zip(self.sends, [*hops, 1.0], strict=True)),
        )

    def rested(self, idle_s: Sequence[float]) -> PipelineTimes:
        """The same where each stage had nothing to do for so long before."""
        if not any(cost.rests for cost in self.costs):
            return self
        longer_s = tuple(
            stage.num_layers * rehearsal.rest_s(cost.rests, idle)
            for stage, cost, idle in zip(self.layout.stages, self.costs, idle_s, strict=True)
        )
        return msgspec.structs.replace(
            self,
            stages=tuple(seconds + more for seconds, more in zip(self.stages, longer_s, strict=True)),
            longer_s=longer_s,
        )

    def between_steps(self, micro_batches: int = 1) -> PipelineTimes:
        """The same with what a stage rests in steady state: while others compute, and during the gateway's turn."""
        round_s = cycle_s(self, micro_batches) / micro_batches
        away = [0.0] * (len(self.stages) - 1) + [self.costs[-1].turn_s if self.costs else 0.0]
        busy = [stage + send - turn for stage, send, turn in zip(self.stages, self.sends, away, strict=True)]
        return self.rested([max(0.0, round_s - each) for each in busy])

    @property
    def total_s(self) -> float:
        return sum(self.stages) + sum(self.hops)

    @property
    def slowest(self) -> int:
        """Index of the stage that is busy longest, sending included."""
        busy = [stage + send for stage, send in zip(self.stages, self.sends, strict=True)]
        return max(range(len(busy)), key=lambda index: busy[index])

    @property
    def slowest_s(self) -> float:
        return self.stages[self.slowest] + self.sends[self.slowest]

    def parts_of(self, stage: int) -> dict[str, float]:
        """What keeps one stage busy: its own parts, and of its hop those that it sends in."""
        if stage == len(self.hops):
            return sum_parts(self.stage_parts(stage))
        sent = scale_parts(self.hop_parts(stage), self.sends[stage] / self.hops[stage])
        return sum_parts(self.stage_parts(stage), sent)


def pipeline_times(
    spec: ModelSpec,
    layout: Layout,
    *,
    step: StepShape,
    dtype: Dtype,
    links: LinkTable,
    quantisation: Quantisation = "none",
    known: StageCosts | None = None,
) -> PipelineTimes:
    """Stage and hop times of one step of this shape; `known` remembers stages' costs from other layouts."""
    costs = StageCosts(spec, links, dtype=dtype, quantisation=quantisation) if known is None else known
    last = len(layout.stages) - 1
    of_stages = tuple(costs.of(stage, step) for stage in layout.stages)
    hop_bytes = step.rows * spec.hidden_size * DTYPE_BYTES[dtype]
    hops = tuple(costs.hop(sender, receiver, hop_bytes) for sender, receiver in itertools.pairwise(layout.stages))
    return PipelineTimes(
        stages=tuple(
            cost.stage_s(stage.num_layers, first=index == 0, last=index == last)
            for index, (cost, stage) in enumerate(zip(of_stages, layout.stages, strict=True))
        ),
        hops=tuple(hop.seconds for hop in hops),
        sends=(*(hop.send_s for hop in hops), 0.0),
        layout=layout,
        costs=of_stages,
        hop_costs=hops,
    )


def time_to_first_token_s(chunk: PipelineTimes, last_chunk: PipelineTimes, *, num_chunks: int) -> float:
    """Chunked prefill on an idle replica: chunks follow each other through the stages (GPipe's makespan).

    The last one, which alone is sampled from, leaves the first stage when the slowest has had all before it.
    """
    return (num_chunks - 1) * chunk.slowest_s + last_chunk.total_s


def bubble(times: PipelineTimes, micro_batches: int) -> float:
    """Share of its time in which the average stage waits in steady state: 1 - M / S where S > M stages are equal.

    That is less than GPipe's 1 - M / (M + S - 1), which fills and drains the pipeline once for every M.
    """
    cycle = cycle_s(times, micro_batches)
    busy = sum(stage + send for stage, send in zip(times.stages, times.sends, strict=True)) * micro_batches
    return max(0.0, 1 - busy / (len(times.stages) * cycle))


def cycle_s(times: PipelineTimes, micro_batches: int) -> float:
    """Seconds in which every micro-batch in flight gets one token.

    No micro-batch can go round faster than the pipeline, and no stage can serve them all faster than one by one.
    """
    return max(times.total_s, micro_batches * times.slowest_s)


def concurrent_sequences(serving: Serving, prompt_tokens: int, answer_tokens: int) -> int:
    """Sequences that run together: the batch, or as many as the KV cache holds at their full length."""
    blocks = math.ceil((prompt_tokens + max(answer_tokens, 1)) / BLOCK_TOKENS)
    return max(1, min(serving.batch, serving.kv_blocks // blocks))


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What a saturated replica does over and over: `tokens` tokens of answers in `seconds`."""

    sequences: int
    micro_batches: int
    decode: PipelineTimes
    """A micro-batch's step of decoding alone."""
    tokens: int
    seconds: float
    bubble: float
    """Share of its decode steps in which the average stage waits."""
    num_cycles: float
    """Of decoding alone."""
    mixed: PipelineTimes | None = None
    """A step of a prompt's chunk with others' tokens beside it; None where prompts are left out."""
    num_chunks: float = 0.0

    @property
    def parts(self) -> Parts:
        """Of `seconds`, before any correction."""
        alone = scale_parts(self.cycle_parts, self.num_cycles)
        if self.mixed is None:
            return alone
        waits = scale_parts(self.mixed.parts_of(self.mixed.slowest), self.num_chunks - 1)
        return sum_parts(waits, self.mixed.parts, alone)

    @property
    def cycle_parts(self) -> Parts:
        """Of `cycle_s`: the round trip's, or those of the stage that serves all micro-batches one by one."""
        times = self.decode
        if times.total_s >= self.micro_batches * times.slowest_s:
            return times.parts
        return scale_parts(times.parts_of(times.slowest), self.micro_batches)


TimesOf = Callable[[StepShape, int], PipelineTimes]
"""Of a step in steady state with so many micro-batches in flight."""


def saturated_round(
    num_stages: int, serving: Serving, times_of: TimesOf, *, prompt_tokens: int, answer_tokens: int
) -> Round:
    """Every running sequence answers one request, prompts of others between its tokens.

    Sequences of equal length end one after the other, so their successors' chunks follow each other through the
    stages, at the pace of the slowest. Other sequences get tokens beside them, one in each round of as many steps
    as there are stages; what is left of an answer comes in steps of decoding alone. While a prompt is in work one
    sequence decodes less, and the scheduler may make fewer micro-batches. Without `answer_tokens` it is one round
    of decoding. The scheduler itself, simulated, is up to 15% slower with short answers, 5% with long ones.
    """
    sequences = concurrent_sequences(serving, prompt_tokens, answer_tokens)
    micro_batches = count_micro_batches(sequences, num_stages)
    context = prompt_tokens + answer_tokens // 2
    rows = math.ceil(sequences / micro_batches)
    decode = times_of(decode_step(rows, context), micro_batches)
    idle = bubble(decode, micro_batches)
    if not answer_tokens:
        return Round(
            sequences=sequences,
            micro_batches=micro_batches,
            decode=decode,
            tokens=sequences,
            seconds=cycle_s(decode, micro_batches),
            bubble=idle,
            num_cycles=1.0,
        )
    chunk = prefill_step(serving, prompt_tokens, num_stages)
    together = prompts_together(serving, chunk.rows, sequences)
    beside = sequences - together
    mixed_step = _mixed_step(chunk, together, beside, num_stages=num_stages, context=context)
    mixed = times_of(mixed_step, num_stages)
    num_chunks = sequences * count_chunks(serving, prompt_tokens, num_stages) / together
    prompts_s = num_chunks * mixed.slowest_s
    rounds = prompts_s / cycle_s(mixed, num_stages)
    alone = max(0.0, answer_tokens - 1 - rounds * beside / sequences)
    return Round(
        sequences=sequences,
        micro_batches=micro_batches,
        decode=decode,
        tokens=sequences * answer_tokens,
        seconds=prompts_s + mixed.total_s - mixed.slowest_s + alone * cycle_s(decode, micro_batches),
        bubble=idle,
        num_cycles=alone,
        mixed=mixed,
        num_chunks=num_chunks,
    )


def prompts_together(serving: Serving, chunk_rows: int, sequences: int) -> float:
    """Chunks that share a step on average, of prompts that came together: what the step's other rows leave.

    A step takes `max(prefill_chunk, batch)` rows, and cuts the last prompt where they are full.
    """
    limit = max(serving.prefill_chunk, serving.batch)
    if chunk_rows <= 1:
        return float(sequences)
    return min(float(sequences), max(1.0, (limit - sequences) / (chunk_rows - 1)))


def _mixed_step(chunk: StepShape, together: float, beside: float, *, num_stages: int, context: int) -> StepShape:
    """A step with chunks of prompts and the tokens of a micro-batch of the sequences beside them."""
    prompt_rows = round(chunk.rows * together)
    rows = math.ceil(beside / count_micro_batches(math.ceil(beside), num_stages)) if beside > 0 else 0
    return StepShape(
        rows=prompt_rows + rows,
        sequences=rows + math.ceil(together),
        context=2 * chunk.context,
        sampled=rows + math.ceil(together),
        row_context=(prompt_rows * chunk.context + rows * context) // (prompt_rows + rows),
    )


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a layout is expected to do, at `prompt_tokens` of prompt and `answer_tokens` of answer (0: any)."""

    prompt_tokens: int
    answer_tokens: int
    ttft_s: float
    """Seconds from a request's arrival at an idle gateway to its first token."""
    time_per_token_s: float
    """Seconds per token after the first (vLLM's TPOT), batch of one."""
    tokens_per_s: float
    """Steady-state throughput of answers with as many sequences as run together."""
    joules_per_token: float
    stage_s: tuple[float, ...]
    """Decode seconds of each stage at a batch of one, links left out."""
    hops_s: float
    """Of `time_per_token_s`, links between stages."""
    micro_batches: int
    sequences: int
    """That run together: the batch, or what the KV cache holds."""
    bubble: float
    """Share of its time in which the average stage waits at a full batch."""
    bottleneck: int
    """Index of the slowest stage at a batch of one."""
    limit: str
    """What bounds that stage, in words."""
    single: PipelineTimes
    """Of a decode step at a batch of one; parts of the times above are made of it and those below, when asked."""
    chunk: PipelineTimes
    """Of one of a prompt's earlier chunks."""
    last_chunk: PipelineTimes
    num_chunks: int
    work: Round
    request_s: float = REQUEST_S
    """Of a first token, a request's way to its first step and back."""

    @property
    def ttft_parts(self) -> Parts:
        """Seconds by what they are spent on, at the constants of `planner.rates`; likewise the two below."""
        earlier = scale_parts(self.chunk.parts_of(self.chunk.slowest), self.num_chunks - 1)
        return sum_parts({REQUEST_PART: self.request_s}, earlier, self.last_chunk.parts)

    @property
    def time_per_token_parts(self) -> Parts:
        return self.single.parts

    @property
    def round_parts(self) -> Parts:
        """Of the round in which a saturated replica gives `round_tokens` tokens."""
        return self.work.parts

    @property
    def round_tokens(self) -> int:
        return self.work.tokens


def estimate_layout(
    spec: ModelSpec,
    layout: Layout,
    serving: Serving,
    *,
    prompt_tokens: int,
    links: LinkTable,
    answer_tokens: int = 0,
    calibration: Calibration = PRIOR,
    known: StageCosts | None = None,
) -> Estimate:
    """Latency, throughput and energy of one replica, with the constants that `calibration` corrects.

    With `answer_tokens` a token is one half-way through the answer, and `tokens_per_s` counts what prompts of other
    requests take; without, it is what decoding alone reaches. `known` remembers stages'
    costs from other layouts.
    """
    costs = known or StageCosts(spec, links, dtype=serving.dtype, quantisation=serving.quantisation)

    def raw(step: StepShape) -> PipelineTimes:
        return pipeline_times(
            spec,
            layout,
            step=step,
            dtype=serving.dtype,
            links=links,
            quantisation=serving.quantisation,
            known=costs,
        )

    def times(step: StepShape, micro_batches: int = 1) -> PipelineTimes:
        return raw(step).between_steps(micro_batches).corrected(calibration)

    num_stages = len(layout.stages)
    single_step = decode_step(1, prompt_tokens + answer_tokens // 2)
    single = times(single_step)
    chunks = count_chunks(serving, prompt_tokens, num_stages)
    # A request comes to a replica at rest; only the first chunk finds it so, wherever that is counted.
    last_chunk = raw(prefill_step(serving, prompt_tokens, num_stages))
    prefill = last_chunk.rested([math.inf] * num_stages).corrected(calibration)
    earlier = prefill
    if chunks > 1:
        earlier = raw(prefill_step(serving, prompt_tokens, num_stages, is_last=False)).corrected(calibration)
    request_s = WARM_REQUEST_S if all(cost.rests for cost in prefill.costs) else REQUEST_S
    work = saturated_round(num_stages, serving, times, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    bottleneck = max(range(num_stages), key=lambda index: single.stages[index])
    slowest = layout.stages[bottleneck]
    cost = costs.of(slowest, single_step)
    return Estimate(
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        ttft_s=seconds_of({REQUEST_PART: request_s}, calibration)
        + time_to_first_token_s(earlier, prefill, num_chunks=chunks),
        time_per_token_s=single.total_s,
        tokens_per_s=work.tokens / work.seconds,
        joules_per_token=_cycle_joules(work) / work.sequences,
        stage_s=single.stages,
        hops_s=sum(single.hops),
        micro_batches=work.micro_batches,
        sequences=work.sequences,
        bubble=work.bubble,
        bottleneck=bottleneck,
        limit=cost.limit,
        single=single,
        chunk=earlier,
        last_chunk=prefill,
        num_chunks=chunks,
        work=work,
        request_s=request_s,
    )


def _cycle_joules(work: Round) -> float:
    """Of one cycle of decoding: idle power throughout, and the rest of each device's power while it computes."""
    seconds = cycle_s(work.decode, work.micro_batches)
    return sum(
        cost.idle_watts * seconds + (cost.busy_watts - cost.idle_watts) * work.micro_batches * stage_s
        for cost, stage_s in zip(work.decode.costs, work.decode.stages, strict=True)
    )
