"""A plan: who holds what. Frozen values; `planner.file` reads and writes them as `plan.toml`.

Ranges are half-open, `[first, end)`. Bytes are exact: what `planner.memory` computes is what ranks hold.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.facts.model import Dtype, Quantisation
from agent.planner.interval import Interval

Range = tuple[int, int]
ObjectiveKind = Literal["latency", "ttft", "throughput", "context", "energy"]
StrategyKind = Literal["pipeline", "tensor", "hybrid", "adaptive", "manual"]
"""Those that are ours; plugins bring others."""
StrategyName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z][a-z0-9_-]{0,62}$",
        extra={"form": "a strategy's name: a lower-case letter, then letters, digits, `_` and `-`"},
    ),
]
"""What a plan records. Who reads the plan need not have the plugin: a layout is a layout."""
SpeculationKind = Literal["none", "prompt_lookup", "draft_model"]
PLAN_VERSION = 1
BLOCK_TOKENS = 16
"""Positions of one block of the paged KV cache, and rows of one block of exact mode's matrix products."""


class ShardBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that one rank holds, in bytes."""

    weights: int
    kv_cache: int
    activations: int
    headroom: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.headroom

    def __add__(self, other: ShardBytes) -> ShardBytes:
        return ShardBytes(
            weights=self.weights + other.weights,
            kv_cache=self.kv_cache + other.kv_cache,
            activations=self.activations + other.activations,
            headroom=self.headroom + other.headroom,
        )


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank owns of its stage.

    `heads` are query heads and a multiple of the KV group, so `kv_heads` follows; `columns` are MLP columns;
    `vocab` are embedding and head rows (used on the first and the last stage only).
    """

    host: str
    device: str
    heads: Range
    kv_heads: Range
    columns: Range
    vocab: Range
    bytes: ShardBytes


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive layers, held by one rank or by a tensor-parallel group of them (`shards`, in order)."""

    layers: Range
    shards: tuple[Shard, ...]

    @property
    def tensor_parallel_size(self) -> int:
        return len(self.shards)


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One full copy of the model: all its stages, in order."""

    stages: tuple[Stage, ...]


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """Which model, where it was found when the plan was made, and the digest it must still have."""

    name: str
    path: str
    digest: str
    source_host: str = ""
    """Host that has the model directory at `path`; empty when the operator's machine has it."""


class DraftRef(ModelRef, frozen=True, kw_only=True):
    """The small model whose guesses the plan's model verifies: whole on the leader of each replica's last stage."""

    weight_bytes: int
    """Of its weights, on each rank that holds it; the rank's own `bytes` count them too, and all else it takes."""
    predicted_cost: float
    """Seconds of a pass, which gives a guess, over those of a token of the plan's model, one stream."""


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    kind: ObjectiveKind = "latency"
    strategy: StrategyName = "adaptive"


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """How the deployment is served. `batch` is the number of sequences that decode together."""

    context: int = 2048
    batch: int = 8
    dtype: Dtype = "bfloat16"
    quantisation: Quantisation = "none"
    exact: bool = False
    """The same tokens whatever shares the batch, however the prompt is cut, and after a replay; slower."""
    speculation: SpeculationKind = "none"
    max_drafts: int = 8
    """Most tokens that are guessed at once."""
    kv_cache_tokens: int = 0
    """Positions that the running sequences share, in whole blocks; 0: `batch x context`."""
    prefill_chunk: int = 256
    queue: int = 512
    listen: str = "127.0.0.1:11434"
    trusted_network: bool = False
    """The inventory says that nobody else hears the hosts' network: ranks talk across it in plaintext, or NCCL."""
    gateway: str = ""
    """Host that runs the gateway; the first controller when empty."""

    @property
    def precision(self) -> str:
        """`bfloat16`, `bfloat16 int8 exact`: for people."""
        parts = [
            self.dtype,
            self.quantisation if self.quantisation != "none" else "",
            "exact" if self.exact else "",
        ]
        return " ".join(part for part in parts if part)

    @property
    def kv_blocks(self) -> int:
        """Blocks of the KV cache of each layer: `kv_cache_tokens`, or every sequence at its full context."""
        if self.kv_cache_tokens:
            return -(-self.kv_cache_tokens // BLOCK_TOKENS)
        return self.batch * -(-self.context // BLOCK_TOKENS)


class Healing(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller may do by itself: restart a dead rank in place, this often per minute."""

    restart: bool = True
    max_restarts_per_minute: int = 3


class Predicted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the planner expects, at `prompt_tokens` of prompt and a batch of one unless it says otherwise.

    Bounds are low and high: four in five measured values should lie between them. Plans of earlier releases have
    none; what is absent is left out when a plan is hashed, so that theirs stay what they were.
    """

    prompt_tokens: int
    ttft_s: float
    time_per_token_s: float
    """Seconds per token after the first (vLLM's TPOT), batch of one."""
    tokens_per_s: float
    """Steady-state throughput of answers at the full batch, prompts of further requests between their tokens."""
    bottleneck: str
    """`replica 0 stage 1 (gpu02/cuda:0): memory bandwidth`, for people."""
    stage_s: tuple[float, ...] = ()
    """Decode seconds of each stage of replica 0, links left out."""
    ttft_bounds_s: tuple[float, ...] = ()
    time_per_token_bounds_s: tuple[float, ...] = ()
    tokens_per_s_bounds: tuple[float, ...] = ()
    answer_tokens: int = 0
    """Of answers; a token is one half-way through them. 0 in plans of earlier releases: decoding alone."""
    num_measured_runs: int = 0
    """Runs on this cluster that the constants were fitted to; 0: published ones, and wide bounds."""
    joules_per_token: tuple[float, ...] = ()
    """Low, expected and high, of the plan's devices decoding at the full batch. Their watts are the data sheet's,
    which is most of the width."""
    peak_bytes: tuple[int, ...] = ()
    """Memory of the fullest rank: least, what its shard counts, and most. A process and a step's workspace are not
    exact."""

    @property
    def ttft(self) -> Interval:
        return _interval(self.ttft_s, self.ttft_bounds_s)

    @property
    def time_per_token(self) -> Interval:
        return _interval(self.time_per_token_s, self.time_per_token_bounds_s)

    @property
    def throughput(self) -> Interval:
        """Tokens per second."""
        return _interval(self.tokens_per_s, self.tokens_per_s_bounds)

    @property
    def energy(self) -> Interval | None:
        """Joules per token; None in plans of earlier releases, as below."""
        return _known_interval(self.joules_per_token)

    @property
    def memory_peak(self) -> Interval | None:
        """Bytes."""
        return _known_interval(self.peak_bytes)


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """What learning had to do with a plan, and whether its measurements are kept to learn from."""

    records: bool = True
    propensity: float = 1.0
    """Likelihood with which the adaptive strategy chose this plan: 1 without exploration."""


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Constraints that a plan was made under; what is at its default was left to the planner."""

    hosts: str = ""
    """Selector of the hosts that could be used, as it was written; empty: all."""
    excluded: tuple[str, ...] = ()
    """Hosts, or `host/device` names, that must have no rank; likewise those that must have one."""
    pinned: tuple[str, ...] = ()
    reserved_bytes: dict[str, int] = {}
    """Memory left alone, by `host/device`."""
    stages: int | None = None
    tensor: int | None = None
    tensor_parallel_sizes: tuple[int, ...] = ()
    min_hosts: int | None = None
    max_hosts: int | None = None
    is_most_replicas: bool = False
    """As many as there can be, not the number that the plan has."""
    spread: str = ""
    """Labels of hosts, as in `PlanRequest`."""
    domain: str = ""
    max_ttft_s: float | None = None
    max_time_per_token_s: float | None = None
    min_context: int | None = None
    """Where the longest context was the objective."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole `plan.toml`. `name` is the deployment's name, the one that clients ask for as a model."""

    name: str
    model: ModelRef
    objective: Objective
    replicas: tuple[Replica, ...]
    serving: Serving
    controllers: tuple[str, ...]
    predicted: Predicted
    healing: Healing = Healing()
    draft: DraftRef | None = None
    """There is one where `serving.speculation` is `draft_model`, and nowhere else."""
    cluster: str = ""
    facts_digest: str = ""
    """Hash of the cluster facts that the plan was made from; apply names what has moved since."""
    why: tuple[str, ...] = ()
    """The planner's reasons, one sentence each."""
    learning: Learning | None = None
    """None: recorded, and chosen without exploration."""
    asked: Asked | None = None
    """None: no constraint. Plans of earlier releases do not tell."""
    version: int = PLAN_VERSION

    @property
    def gateway_host(self) -> str:
        return self.serving.gateway or self.controllers[0]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that the plan needs, sorted: those of its ranks, its controllers and its gateway."""
        ranks = {shard.host for replica in self.replicas for stage in replica.stages for shard in stage.shards}
        return tuple(sorted(ranks | set(self.controllers) | {self.gateway_host}))


class RankPlace(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a plan, with where it stands: the way in which everything enumerates ranks."""

    replica: int
    stage: int
    tensor_index: int
    """Position in the stage's tensor-parallel group; 0 is its leader."""
    shard: Shard
    layers: Range

    @property
    def rank_id(self) -> str:
        """`r0s1t0`: unique within a generation of a deployment, and short enough for a socket's path."""
        return f"r{self.replica}s{self.stage}t{self.tensor_index}"


def draft_places(plan: Plan) -> tuple[RankPlace, ...]:
    """The ranks that hold the draft model, those that draw; none without one."""
    if plan.draft is None:
        return ()
    last = [len(replica.stages) - 1 for replica in plan.replicas]
    return tuple(
        place for place in rank_places(plan) if place.stage == last[place.replica] and place.tensor_index == 0
    )


def rank_places(plan: Plan) -> tuple[RankPlace, ...]:
    """All ranks of a plan, by replica, stage and tensor index."""
    return tuple(
        RankPlace(replica=r, stage=s, tensor_index=t, shard=shard, layers=stage.layers)
        for r, replica in enumerate(plan.replicas)
        for s, stage in enumerate(replica.stages)
        for t, shard in enumerate(stage.shards)
    )


def _interval(expected: float, bounds: tuple[float, ...]) -> Interval:
    low, high = bounds or (expected, expected)
    return Interval(low=low, expected=expected, high=high)


def _known_interval(ends: tuple[float, ...]) -> Interval | None:
    return Interval(low=ends[0], expected=ends[1], high=ends[2]) if ends else None
