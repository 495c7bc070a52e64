"""How long a step takes: roofline per stage, latency and rate per link, and what follows for a deployment. Pure.

Units are bytes, seconds and FLOP. Sources: the roofline and its constants as in `planner.rates`; ring and tree
all-reduce after Thakur, Rabenseifner and Gropp (2005); pipeline terms as in GPipe (Huang et al., 2019).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import msgspec

from agent.facts.cluster import DeviceFacts, LinkFacts
from agent.facts.model import DTYPE_BYTES, Dtype, ModelSpec, Quantisation
from agent.planner.calibration import PRIOR, Calibration, Parts, correction, scale_parts, sum_parts
from agent.planner.carriers import DIRECT_SUM_BYTES, CarrierKind, carrier_of
from agent.planner.layout import Layout, Place, Share, StageLayout, cut_shares
from agent.planner.plan import Serving
from agent.planner.rates import (
    CARRIERS,
    STEP_S,
    DeviceRates,
    LinkTable,
    rates_of,
)
from agent.planner.shards import dense_columns, weight_bytes

FLOAT32_BYTES = 4
EXPERT_OVERHEAD = 0.3
"""Launching one expert's kernels, in launches of a layer's.

On one CPU thread a dense layer of hidden size 256 took 340 us, and each further expert of a token 116 us in the
same run, of which reading it is 16.
"""


class StepShape(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the engine: `rows` tokens of `sequences` sequences, each attending to `context` positions.

    `sampled` rows go through the head. A decode step has as many rows as sequences; a prefill step has one chunk.
    """

    rows: int
    sequences: int
    context: int
    sampled: int

    @property
    def is_prefill(self) -> bool:
        return self.rows > self.sequences


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
    device: str = "cpu"
    """What the constants of the slowest rank are called: `cuda`, `cpu`, `unprobed cpu`."""
    carrier: str = "tls"
    flops_part: str = "decode_flops"

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
            f"{self.carrier} reduces": num_layers * self.layer_reduce_s + first * reduce_s + last * self.gather_s,
            "step": last * (self.last_s - self.head_s - self.gather_s),
        }
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


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a layout is expected to do, at `prompt_tokens` of prompt."""

    prompt_tokens: int
    ttft_s: float
    """Seconds from a request's arrival at an idle gateway to its first token."""
    time_per_token_s: float
    """Seconds per token after the first (vLLM's TPOT), batch of one."""
    tokens_per_s: float
    """Steady-state decode throughput at the full batch."""
    joules_per_token: float
    stage_s: tuple[float, ...]
    """Decode seconds of each stage at a batch of one, links left out."""
    hops_s: float
    """Of `time_per_token_s`, links between stages."""
    micro_batches: int
    bottleneck: int
    """Index of the slowest stage at a batch of one."""
    limit: str
    """What bounds that stage, in words."""
    ttft_parts: Parts = {}
    """Seconds by what they are spent on, at the constants of `planner.rates`; likewise the two below."""
    time_per_token_parts: Parts = {}
    cycle_parts: Parts = {}
    """Of the cycle in which each sequence of the full batch gets a token."""


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
    attention = attended_positions(spec, step.context) * heads * spec.head_size
    return 2 * step.rows * weights + 4 * step.rows * attention


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
        if link.carrier == carrier and link.reduce_latency_s is not None and link.reduce_bytes_per_s is not None:
            # measured between two, where it is one hop of n bytes
            return hops * link.reduce_latency_s + crossing / link.reduce_bytes_per_s
        per_byte = own.seconds_per_byte if link.carrier is None else 0.0
        return own.all_reduce_s + hops * alpha + crossing * (1 / beta + per_byte)
    ring = 2 * (p - 1) * alpha + 2 * (p - 1) / p * num_bytes / beta
    tree = 2 * math.ceil(math.log2(p)) * alpha + 2 * num_bytes / beta
    return own.all_reduce_s + min(ring, tree)


def all_gather_s(link: LinkFacts, num_bytes: int, group_size: int) -> float:
    """Seconds until every rank has all `num_bytes`, of which each brought its part (ring)."""
    return (group_size - 1) * (link.latency_s + num_bytes / group_size / link.bytes_per_s)


def group_link(places: Sequence[Place], links: LinkTable) -> LinkFacts:
    """The slowest latency and the slowest rate between any two members of a group."""
    pairs = [
        links.between(a.host, b.host, a.device.kind if a.device.kind == b.device.kind else "cpu")
        for a in places
        for b in places
        if a is not b
    ]
    carriers = {link.carrier for link in pairs}
    reduce_latencies = [link.reduce_latency_s for link in pairs if link.reduce_latency_s is not None]
    reduce_rates = [link.reduce_bytes_per_s for link in pairs if link.reduce_bytes_per_s is not None]
    are_sums_measured = bool(pairs) and len(pairs) == len(reduce_latencies) == len(reduce_rates)
    return LinkFacts(
        source=places[0].host,
        target=places[-1].host,
        latency_s=max((link.latency_s for link in pairs), default=0.0),
        bytes_per_s=min((link.bytes_per_s for link in pairs), default=math.inf),
        carrier=carriers.pop() if len(carriers) == 1 else None,
        reduce_latency_s=max(reduce_latencies) if are_sums_measured else None,
        reduce_bytes_per_s=min(reduce_rates) if are_sums_measured else None,
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


def message_s(carrier: CarrierKind, num_bytes: int) -> float:
    """Seconds that a carrier takes by itself for a message of a pipeline link."""
    return CARRIERS[carrier].message_s + num_bytes * CARRIERS[carrier].seconds_per_byte


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
    link = group_link(places, links)
    carrier = carrier_between(places, links)
    reduce_s = all_reduce_s(link, step.rows * spec.hidden_size * element, p, carrier=carrier)
    overheads = layer_overheads(spec, step)
    reads_s = flops_s = compute_s = head_s = embed_s = experts_s = 0.0
    slowest = ""
    for place, share in zip(places, cut_shares(spec, units), strict=True):
        rates = rates_of(place.device, dtype, quantisation)
        read_bytes = layer_read_bytes(spec, share, step, dtype, quantisation)
        flops = layer_flops(spec, share, step)
        rank_reads_s, rank_flops_s = roofline_s(read_bytes, flops, rates, is_prefill=step.is_prefill)
        rank_s = max(rank_reads_s, rank_flops_s) + rates.layer_overhead_s * overheads
        if rank_s > compute_s:
            reads_s, flops_s, compute_s = rank_reads_s, rank_flops_s, rank_s
            experts_s = rates.layer_overhead_s * (overheads - 1)
            slowest = place.device.kind if rates.is_measured or place.device.kind == "cuda" else "unprobed cpu"
        head_elements = (share.vocab[1] - share.vocab[0]) * spec.hidden_size
        if step.sampled:
            head_bytes = head_elements * weight_bytes(dtype, quantisation)
            head = roofline_s(head_bytes, 2 * step.sampled * head_elements, rates, is_prefill=False)
            head_s = max(head_s, *head)
        embed_s = max(embed_s, step.rows * spec.hidden_size * element / rates.read_bytes_per_s)
    gather_s = all_gather_s(link, step.sampled * spec.vocab_size * FLOAT32_BYTES, p) if step.sampled else 0.0
    return StageCost(
        layer_s=compute_s + 2 * reduce_s,
        first_s=embed_s + reduce_s,
        last_s=head_s + gather_s + STEP_S,
        layer_reads_s=reads_s,
        layer_flops_s=flops_s,
        layer_reduce_s=2 * reduce_s,
        layer_experts_s=experts_s,
        head_s=head_s,
        gather_s=gather_s,
        device=slowest,
        carrier=carrier,
        flops_part="prefill_flops" if step.is_prefill else "decode_flops",
    )


def decode_step(batch: int, prompt_tokens: int) -> StepShape:
    """One token for each of `batch` sequences whose context is the prompt."""
    return StepShape(rows=batch, sequences=batch, context=prompt_tokens, sampled=batch)


def count_chunks(serving: Serving, prompt_tokens: int) -> int:
    """Steps that a prompt takes; one of them has as many tokens as the chunk, or a token of every slot."""
    return math.ceil(prompt_tokens / max(serving.prefill_chunk, serving.batch))


def prefill_step(serving: Serving, prompt_tokens: int, *, is_last: bool = True) -> StepShape:
    """One of a prompt's chunks, all taken as equal; its rows attend to half of the prompt on average (causal)."""
    rows = math.ceil(prompt_tokens / count_chunks(serving, prompt_tokens))
    return StepShape(rows=rows, sequences=1, context=max(1, prompt_tokens // 2), sampled=int(is_last))


class StageCosts:
    """`stage_cost` for one model and precision, remembered: a device costs what any of its kind costs."""

    def __init__(self, spec: ModelSpec, serving: Serving, links: LinkTable) -> None:
        self._spec = spec
        self._serving = serving
        self._links = links
        self._known: dict[Hashable, StageCost] = {}
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
                dtype=self._serving.dtype,
                links=self._links,
                quantisation=self._serving.quantisation,
            )
        return self._known[key]

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
    stage_parts: tuple[Parts, ...] = ()
    """Of each stage, its seconds by what they are spent on, before any correction."""
    hop_parts: tuple[Parts, ...] = ()

    @property
    def parts(self) -> dict[str, float]:
        """Of one micro-batch through all stages."""
        return sum_parts(*self.stage_parts, *self.hop_parts)

    def corrected(self, calibration: Calibration) -> PipelineTimes:
        """The same with constants as measured runs corrected them."""
        hops = [correction(parts, calibration) for parts in self.hop_parts]
        stages = [correction(parts, calibration) for parts in self.stage_parts]
        return msgspec.structs.replace(
            self,
            stages=tuple(seconds * by for seconds, by in zip(self.stages, stages, strict=True)),
            hops=tuple(seconds * by for seconds, by in zip(self.hops, hops, strict=True)),
            sends=tuple(seconds * by for seconds, by in zip(self.sends, [*hops, 1.0], strict=True)),
        )

    @property
    def total_s(self) -> float:
        return sum(self.stages) + sum(self.hops)

    @property
    def slowest_s(self) -> float:
        return max(stage + send for stage, send in zip(self.stages, self.sends, strict=True))


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
    last = len(layout.stages) - 1
    costs = [
        stage_cost(spec, stage.places, stage.units, step=step, dtype=dtype, links=links, quantisation=quantisation)
        if known is None
        else known.of(stage, step)
        for stage in layout.stages
    ]
    ends = [
        (cost, stage.num_layers, index == 0, index == last)
        for index, (cost, stage) in enumerate(zip(costs, layout.stages, strict=True))
    ]
    stages = tuple(cost.stage_s(layers, first=first, last=end) for cost, layers, first, end in ends)
    hop_bytes = step.rows * spec.hidden_size * DTYPE_BYTES[dtype]
    pairs = list(zip(layout.stages, layout.stages[1:], strict=False))
    between = [hop_link(a, b, links) for a, b in pairs]
    hops = tuple(hop_s(a, b, hop_bytes, links) for a, b in pairs)
    carriers = [carrier_between((a.places[0], b.places[0]), links) for a, b in pairs]
    return PipelineTimes(
        stages=stages,
        hops=hops,
        sends=(*(hop_bytes / link.bytes_per_s for link in between), 0.0),
        stage_parts=tuple(cost.parts(layers, first=first, last=end) for cost, layers, first, end in ends),
        hop_parts=tuple({f"{carrier} messages": hop} for carrier, hop in zip(carriers, hops, strict=True)),
    )


def time_to_first_token_s(chunk: PipelineTimes, last_chunk: PipelineTimes, *, num_chunks: int) -> float:
    """Chunked prefill on an idle replica: a sequence is in one step at a time, so chunks do not overlap.

    Only the last one is sampled from.
    """
    return (num_chunks - 1) * chunk.total_s + last_chunk.total_s


def cycle_s(times: PipelineTimes, micro_batches: int) -> float:
    """Seconds in which every micro-batch in flight gets one token.

    No micro-batch can go round faster than the pipeline, and no stage can serve them all faster than one by one.
    """
    return max(times.total_s, micro_batches * times.slowest_s)


def estimate_layout(
    spec: ModelSpec,
    layout: Layout,
    serving: Serving,
    *,
    prompt_tokens: int,
    links: LinkTable,
    calibration: Calibration = PRIOR,
    known: StageCosts | None = None,
) -> Estimate:
    """Latency, throughput and energy of one replica, with the constants that `calibration` corrects.

    A full batch runs as `min(stages, batch)` micro-batches in flight. The interleaving of other requests' prefills
    is left out: `tokens_per_s` is what decoding alone reaches. `known` remembers stages' costs from other layouts.
    """
    costs = StageCosts(spec, serving, links) if known is None else known

    def times(step: StepShape) -> PipelineTimes:
        return pipeline_times(
            spec,
            layout,
            step=step,
            dtype=serving.dtype,
            links=links,
            quantisation=serving.quantisation,
            known=costs,
        ).corrected(calibration)

    single = times(decode_step(1, prompt_tokens))
    chunks = count_chunks(serving, prompt_tokens)
    prefill = times(prefill_step(serving, prompt_tokens))
    earlier = times(prefill_step(serving, prompt_tokens, is_last=False)) if chunks > 1 else prefill
    micro_batches = min(len(layout.stages), serving.batch)
    rows = math.ceil(serving.batch / micro_batches)
    full = times(decode_step(rows, prompt_tokens))
    cycle = cycle_s(full, micro_batches)
    bottleneck = max(range(len(single.stages)), key=lambda index: single.stages[index])
    slowest = layout.stages[bottleneck]
    cost = costs.of(slowest, decode_step(1, prompt_tokens))
    return Estimate(
        prompt_tokens=prompt_tokens,
        ttft_s=time_to_first_token_s(earlier, prefill, num_chunks=chunks),
        time_per_token_s=single.total_s,
        tokens_per_s=serving.batch / cycle,
        joules_per_token=_energy_j(layout, full, serving, micro_batches=micro_batches, cycle=cycle) / serving.batch,
        stage_s=single.stages,
        hops_s=sum(single.hops),
        micro_batches=micro_batches,
        bottleneck=bottleneck,
        limit=cost.limit,
        ttft_parts=sum_parts(scale_parts(earlier.parts, chunks - 1), prefill.parts),
        time_per_token_parts=single.parts,
        cycle_parts=_cycle_parts(full, micro_batches),
    )


def _cycle_parts(times: PipelineTimes, micro_batches: int) -> dict[str, float]:
    """Of `cycle_s`: the round trip's, or those of the stage that serves all micro-batches one by one."""
    busy = [stage + send for stage, send in zip(times.stages, times.sends, strict=True)]
    slowest = max(range(len(busy)), key=lambda index: busy[index])
    if times.total_s >= micro_batches * busy[slowest]:
        return times.parts
    share = times.sends[slowest] / times.hops[slowest] if slowest < len(times.hops) else 0.0
    sent = [scale_parts(parts, share) for parts in times.hop_parts[slowest : slowest + 1]]
    return scale_parts(sum_parts(times.stage_parts[slowest], *sent), micro_batches)


def _energy_j(layout: Layout, times: PipelineTimes, serving: Serving, *, micro_batches: int, cycle: float) -> float:
    """Joules of one cycle: idle power throughout, and the rest of each device's power while it computes."""
    joules = 0.0
    for stage, stage_s in zip(layout.stages, times.stages, strict=True):
        for place in stage.places:
            rates = rates_of(place.device, serving.dtype)
            busy_s = micro_batches * stage_s
            joules += rates.idle_watts * cycle + (rates.busy_watts - rates.idle_watts) * busy_s
    return joules
