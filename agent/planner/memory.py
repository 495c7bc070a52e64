"""Exact bytes of a shard: weights, KV cache, activations and headroom. Pure.

What is counted here is what a rank holds, so that a plan which fits does not run out of memory later.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.facts.cluster import DeviceKind
from agent.facts.model import DTYPE_BYTES, ModelSpec
from agent.planner.interval import Interval
from agent.planner.layout import Layout, Share, StageLayout, cut_shares, extent_of, stage_extents
from agent.planner.plan import BLOCK_TOKENS, Serving, Shard, ShardBytes
from agent.planner.shards import ShardExtent, dense_columns, shard_weight_bytes, whole_extent

MIB = 1 << 20

CPU_RUNTIME_BYTES = 384 * MIB
"""A CPU rank without weights: interpreter, torch, allocator slack, TLS and gloo buffers.

Measured with torch 2.13.0+cpu on x86-64 Linux: resident set 231 MB after `import torch`, 239 MB after the first
bf16 matrix product; a linked rank peaks 275 MB above its weights, cache and activations after steps at full batch
and full context, and up to 354 MB where packing its weights left freed blocks with the allocator. The rest is for
threads' stacks and oneDNN's scratchpads on hosts with more cores.
"""

CUDA_RUNTIME_BYTES = 1024 * MIB
"""A CUDA rank without weights, in device memory: context and kernels, cuBLAS workspaces, NCCL channels.

About 0.5 GB of CUDA context plus 0.35 to 0.4 GB of NCCL per rank (AIConfigurator's table), the rest is the caching
allocator's fragmentation.
"""

RUNTIME_SHARES: dict[DeviceKind, tuple[float, float]] = {"cpu": (0.6, 1.25), "cuda": (0.5, 1.5)}
"""Least and most that a rank's process takes of what is counted for it.

On a CPU 239 to 354 MB of 402 were measured on hosts of two cores; more have more threads and scratchpads. On a GPU
it is the context alone, or libraries that keep half a gigabyte more than the table's."""

LEAST_WORKSPACE = 0.5
"""Of what is counted for activations, where attention gives back to the MLP what it took; never more than all."""

MAX_PARTS = 4
"""Most runs of blocks that a decoding row reads one by one; the keys of more of them are gathered first."""

GATHERED_POSITIONS = 4096
"""Positions whose keys and values a CPU rank gathers at once for rows that decode together."""

MAX_GRAPH_ROWS = 64
"""Most rows of a step that a CUDA rank runs as a recorded graph, which gathers the keys of every row."""


class StageMemory(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's memory as a line: `fixed_bytes + num_layers * layer_bytes`."""

    fixed_bytes: int
    layer_bytes: int

    def max_layers(self, usable_bytes: int) -> int:
        """Layers that fit, 0 when not even the fixed part does."""
        return max(0, usable_bytes - self.fixed_bytes) // self.layer_bytes


def shard_bytes(spec: ModelSpec, extent: ShardExtent, serving: Serving, kind: DeviceKind) -> ShardBytes:
    """All that one rank holds, in bytes. A tied model's embedding counts once on a stage that is first and last."""
    num_layers = extent.layers[1] - extent.layers[0]
    return ShardBytes(
        weights=shard_weight_bytes(spec, extent, serving.dtype, serving.quantisation),
        kv_cache=num_layers * kv_layer_bytes(spec, extent.kv_heads[1] - extent.kv_heads[0], serving),
        activations=activation_bytes(spec, extent, serving, kind),
        headroom=runtime_bytes(kind),
    )


def held_bytes(held: ShardBytes, kind: DeviceKind) -> Interval:
    """Bytes that a rank will be found to hold: weights and KV cache are exact, its process and workspace are not.

    The ends are the least and the most that was seen or is to be expected, and not four in five runs'.
    """
    exact = held.weights + held.kv_cache
    least, most = RUNTIME_SHARES[kind]
    low = exact + LEAST_WORKSPACE * held.activations + least * held.headroom
    return Interval(low=low, expected=held.total, high=exact + held.activations + most * held.headroom)


def peak_bytes(shards: Iterable[Shard]) -> Interval:
    """Of the fullest rank among these."""
    peak = max(shards, key=lambda shard: shard.bytes.total)
    return held_bytes(peak.bytes, kind_of_device(peak.device))


def kind_of_device(device_id: str) -> DeviceKind:
    """Of `cpu`, `cuda:0` …: all that a plan file says of a device."""
    return "cpu" if device_id == "cpu" else "cuda"


def draft_bytes(draft: ModelSpec, serving: Serving, kind: DeviceKind) -> ShardBytes:
    """What a draft model adds to a rank: all of it, a KV cache of as many blocks, and its workspace.

    The process is there already, so there is no headroom of its own.
    """
    return msgspec.structs.replace(shard_bytes(draft, whole_extent(draft), serving, kind), headroom=0)


def kv_layer_bytes(spec: ModelSpec, num_kv_heads: int, serving: Serving) -> int:
    """KV cache of one layer: keys and values of every position in the plan's blocks."""
    positions = serving.kv_blocks * BLOCK_TOKENS
    return 2 * positions * num_kv_heads * spec.head_size * DTYPE_BYTES[serving.dtype]


def grouped_kv_elements(num_kv_heads: int, head_size: int) -> int:
    """Elements that a position keeps in one layer: a key and a value for each KV head.

    Multi-head attention has as many KV heads as query heads, multi-query attention one.
    """
    return 2 * num_kv_heads * head_size


def latent_kv_elements(latent_rank: int, rope_size: int) -> int:
    """The same under multi-head latent attention: one compressed vector and one rotary key for all heads.

    DeepSeek-V2 (2024), section 2.1.3: 512 + 64 in its models. Every rank of a group holds all of it.
    """
    return latent_rank + rope_size


def activation_bytes(spec: ModelSpec, extent: ShardExtent, serving: Serving, kind: DeviceKind) -> int:
    """Workspace of the largest step.

    With T = max(prefill_chunk, batch) rows, as the scheduler fills a step, and b bytes per element:

    - `4*T*hidden*b`: residual, normed input, block output, and the received or sent hidden state;
    - `T*(heads + 2*kv_heads)*head_size*b` for queries, keys, values, and `T*heads*head_size*b` for their result;
    - `3*T*columns*b`: gate, up, and their product;
    - `(g + 1)*N*context*b + 2*N*context` for the attention mask of a chunk of N = min(T, context) rows: positions
      compared as bytes, the mask, and its copy for each of g query heads that share a KV head; twice where layers
      differ in their window;
    - `2*G*kv_heads*head_size*b`: keys and values gathered from their blocks, at G positions: on a CPU of one
      sequence, or of `GATHERED_POSITIONS` if all sequences have as many; on a GPU of every row of a recorded step
      (R below to the next power of two, `MAX_GRAPH_ROWS` at most); and `2*P*batch*heads*head_size*4` for decoding
      rows that read their keys in P parts;
    - on the last stage `2*R*vocabulary*4`: float32 logits of every sampled row, gathered from the whole group, and
      one sorted or filtered copy of them; R is `batch`, and `max_drafts` more where drafts are verified.

    - where attention scores are capped, `10*N*context*heads`: they are held in float32, as is their softmax;
    - where there are experts, `3*T*hidden*b` for rows gathered, computed and summed, and `24*T*E` for the routing.

    Attention and MLP count together although they follow each other: the allocator keeps both.
    """
    element = DTYPE_BYTES[serving.dtype]
    rows = max(serving.prefill_chunk, serving.batch)
    heads = extent.heads[1] - extent.heads[0]
    kv_heads = extent.kv_heads[1] - extent.kv_heads[0]
    columns = max(end - begin for begin, end in (extent.columns, dense_columns(spec, extent.columns)))
    hidden = (7 if spec.num_experts else 4) * rows * spec.hidden_size
    attention = rows * (2 * heads + 2 * kv_heads) * spec.head_size
    mlp = 3 * rows * columns
    visible = min(rows, serving.context) * serving.context
    num_masks = 2 if spec.sliding_window is not None and spec.full_layers else 1
    mask = num_masks * visible * ((spec.queries_per_kv_head + 1) * element + 2)
    capped = 10 * visible * heads if spec.attention_softcap is not None else 0
    routing = 24 * rows * spec.num_experts
    sampled = serving.batch + (0 if serving.speculation == "none" else serving.max_drafts)
    if kind == "cpu":
        positions = max(serving.context, min(GATHERED_POSITIONS, serving.batch * serving.context))
    else:
        positions = min(1 << (sampled - 1).bit_length(), MAX_GRAPH_ROWS) * serving.context
    gathered = 2 * positions * kv_heads * spec.head_size
    parts = 2 * MAX_PARTS * serving.batch * heads * spec.head_size * 4
    logits = 2 * sampled * spec.vocab_size * 4 if extent.is_last_stage else 0
    return (hidden + attention + mlp + gathered) * element + mask + capped + routing + parts + logits


def runtime_bytes(kind: DeviceKind) -> int:
    """What a rank's process costs before it holds anything of the model."""
    return CPU_RUNTIME_BYTES if kind == "cpu" else CUDA_RUNTIME_BYTES


def stage_bytes(
    spec: ModelSpec, stage: StageLayout, serving: Serving, draft: ModelSpec | None = None
) -> tuple[ShardBytes, ...]:
    """Bytes of each rank of a stage, in the group's order; the leader of the last one holds the draft model too."""
    return tuple(
        rank_bytes(
            spec, extent, serving, place.device.kind, draft=draft if index == 0 and extent.is_last_stage else None
        )
        for index, (place, extent) in enumerate(zip(stage.places, stage_extents(spec, stage), strict=True))
    )


def rank_bytes(
    spec: ModelSpec, extent: ShardExtent, serving: Serving, kind: DeviceKind, *, draft: ModelSpec | None
) -> ShardBytes:
    """All that a rank holds: its shard, and the draft model where it has one."""
    held = shard_bytes(spec, extent, serving, kind)
    return held if draft is None else held + draft_bytes(draft, serving, kind)


class StageSizes:
    """Memory by number of layers for shares of one model under one serving; remembers, since shares repeat."""

    def __init__(self, spec: ModelSpec, serving: Serving, draft: ModelSpec | None = None) -> None:
        self._spec = spec
        self._serving = serving
        self._draft = draft
        self._known: dict[tuple[tuple[int, ...], DeviceKind, bool, bool, bool], StageMemory] = {}

    def memory(
        self, share: Share, kind: DeviceKind, *, first: bool, last: bool, leads: bool = False
    ) -> StageMemory:
        """Of a rank with this share, as a first, middle, last or only stage; who leads the last holds the draft."""
        ranges = (share.heads, share.kv_heads, share.columns, share.vocab)
        drafts = last and leads and self._draft is not None
        key = (tuple(end - begin for begin, end in ranges), kind, first, last, drafts)
        if key not in self._known:
            self._known[key] = self._measure(share, kind, first=first, last=last, drafts=drafts)
        return self._known[key]

    def layout_fits(self, layout: Layout, usable_bytes: dict[str, int]) -> bool:
        """True when every rank of a layout fits; `usable_bytes` by the name of its place."""
        last = len(layout.stages) - 1
        for index, stage in enumerate(layout.stages):
            ranks = zip(stage.places, stage_extents(self._spec, stage), strict=True)
            for rank, (place, extent) in enumerate(ranks):
                share = Share(
                    heads=extent.heads, kv_heads=extent.kv_heads, columns=extent.columns, vocab=extent.vocab
                )
                memory = self.memory(
                    share, place.device.kind, first=index == 0, last=index == last, leads=rank == 0
                )
                if stage.num_layers > memory.max_layers(usable_bytes[place.name]):
                    return False
        return True

    def holds_a_layer(self, kind: DeviceKind, usable_bytes: int) -> bool:
        """True when a whole device of this kind and size can be at least a middle stage of one layer."""
        whole = cut_shares(self._spec, (self._spec.num_kv_heads,))[0]
        return self.memory(whole, kind, first=False, last=False).max_layers(usable_bytes) >= 1

    def _measure(self, share: Share, kind: DeviceKind, *, first: bool, last: bool, drafts: bool) -> StageMemory:
        """The heaviest kind of layer counts for all, where they differ."""
        extent = extent_of(self._spec, (0, 0), share)
        empty = msgspec.structs.replace(extent, is_first_stage=first, is_last_stage=last)
        fixed = shard_bytes(self._spec, empty, self._serving, kind).total
        kinds = {self._spec.is_sparse(layer): layer for layer in range(self._spec.num_layers)}
        ones = [msgspec.structs.replace(empty, layers=(layer, layer + 1)) for layer in kinds.values()]
        layer = max(shard_bytes(self._spec, one, self._serving, kind).total for one in ones) - fixed
        if drafts and self._draft is not None:
            fixed += draft_bytes(self._draft, self._serving, kind).total
        return StageMemory(fixed_bytes=fixed, layer_bytes=layer)
