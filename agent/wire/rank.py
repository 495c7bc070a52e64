"""Messages to and from an engine rank.

Two channels reach a rank. The supervisor's is a unix socket (framed request and reply, one at a time per
connection; the rank listens, so that a restarted agent finds it again). The gateway's is a TCP socket under
mutual TLS: steps go in, results come out, in order. Ranks of one replica all get the same steps in the same
order; hidden states and reductions travel on `engine.links`, never here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import ErrorDetail
from agent.facts.model import Dtype, ModelSpec, Quantisation
from agent.planner.carriers import CarrierKind
from agent.planner.shards import ShardExtent

RankState = Literal["loading", "loaded", "linked", "failed"]


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of PEM files: the cluster's CA, this host's leaf and its key."""

    ca: str
    cert: str
    key: str


class DraftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The draft model beside a shard: whole, in the rank's dtype and quantisation. Files as in `RankConfig`."""

    model: ModelSpec
    model_dir: str
    shard_file: str


class RankConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that a rank is told at start, as a JSON file: `python -m agent.engine FILE`.

    `shard_file` is a safetensors file that holds exactly this rank's slices under their HF names; when it is
    empty the rank reads its slices out of `model_dir` (HF layout) by byte range.
    """

    cluster: str
    host: str
    deployment: str
    generation: int
    """Generation under which the process was started; `LinkRank` may move it to a later one."""
    rank_id: str
    plan_hash: str
    device: str
    cluster_address: str
    socket: str
    """Path of the unix socket that the rank listens on for its supervisor."""
    agent_socket: str
    """Path of the agent's control socket: the rendezvous store is reached through it."""
    tls: TlsFiles
    model: ModelSpec
    model_dir: str
    shard_file: str
    extent: ShardExtent
    tensor_index: int
    dtype: Dtype
    context: int
    batch: int
    prefill_chunk: int
    threads: int
    quantisation: Quantisation = "none"
    is_exact: bool = False
    kv_blocks: int = 0
    """Blocks of `planner.plan.BLOCK_TOKENS` positions in the KV cache of each layer; 0: `batch` full contexts."""
    cache_dir: str = ""
    """Where quantised and packed shards are kept for the next start; empty: nowhere."""
    draft: DraftConfig | None = None
    """On the leader of the last stage, where the plan has a draft model."""


# --- supervisor -> rank, over the unix socket ---------------------------------------------------------


class GetStatus(msgspec.Struct, frozen=True, kw_only=True, tag="get_status"):
    """Answered at once by a thread of its own, whatever the engine thread is doing."""


class PipelineLink(msgspec.Struct, frozen=True, kw_only=True):
    """One directed link between two ranks; `name` is equal at both ends (`r0s0t0>r0s1t0`)."""

    name: str
    other_rank: str
    carrier: CarrierKind


class TensorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's tensor-parallel group: rank ids in order, all on the same carrier."""

    name: str
    members: tuple[str, ...]
    carrier: CarrierKind


class LinkRank(msgspec.Struct, frozen=True, kw_only=True, tag="link_rank"):
    """Drop all links, forget all sequences, and build these links under `generation`.

    Answered with `RankStatus` once linked, or with state `loaded` and `error` when that failed in time.
    """

    generation: int
    receives_from: PipelineLink | None
    sends_to: tuple[PipelineLink, ...]
    group: TensorGroup | None
    timeout_s: float
    controller: str = ""
    """Host whose agent keeps the rendezvous store."""


class UnlinkRank(msgspec.Struct, frozen=True, kw_only=True, tag="unlink_rank"):
    """Abort every link now, fail the steps under way, and go back to `loaded`."""


class StopRank(msgspec.Struct, frozen=True, kw_only=True, tag="stop_rank"):
    """Answer, then leave with exit code 0."""


RankRequest = GetStatus | LinkRank | UnlinkRank | StopRank


class LinkCount(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    sent_bytes: int
    received_bytes: int
    wait_s: float
    """Seconds spent blocked on it."""
    round_trip_s: float | None = None
    """The kernel's smoothed round trip time of the link's TCP connections, the slowest of them; None where there
    are none to ask: unix sockets, NCCL, a rank of an earlier release."""


class RankStatus(msgspec.Struct, frozen=True, kw_only=True, tag="rank_status"):
    rank_id: str
    deployment: str
    generation: int
    pid: int
    state: RankState
    loaded_fraction: float
    weight_bytes: int
    """Bytes of the weight tensors that the process holds, counted from the tensors themselves."""
    read_bytes: int
    """Bytes of tensor data read from disk to load them."""
    kv_cache_bytes: int
    step_port: int
    """TCP port of the step channel on the rank's cluster address; 0 until it listens."""
    progress: int
    """Grows with every layer executed; a rank with work whose progress stands still hangs."""
    queued_steps: int
    steps: int
    busy_s: float
    """Seconds of compute since start, waits on links left out."""
    tokens: int
    links: tuple[LinkCount, ...] = ()
    error: ErrorDetail | None = None
    spawn_generation: int = 0
    """Generation under which the process was started: in an apply, old and new ranks of one id run side by side."""
    at_s: float = 0.0
    """When these figures were read, by a steady clock of the process: only differences mean anything. 0: a rank of
    an earlier release, which does not say."""


# --- gateway -> rank, over the step channel -----------------------------------------------------------


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How a token is drawn. Temperature 0 is greedy. The draw for position p depends on (seed, p) alone."""

    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """How far the penalties look back; -1: all of the sequence, 0: off."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalties_from: int = 0
    """Position of the first token that presence and frequency count: OpenAI's leave the prompt out."""
    logprobs: int = -1
    """Alternatives to report per token (0: the chosen one only; -1: none at all)."""


class OpenStep(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First message of a gateway. Refused unless deployment and generation are the rank's own."""

    deployment: str
    generation: int
    gateway: str


class SequenceSlice(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one sequence in one step: a chunk of its prompt, or the one token to decode from.

    `start` is the position of `tokens[0]`; the KV cache of `slot` holds everything before it. `start == 0`
    begins a new sequence in the slot and carries its sampling parameters. When `samples` is true the last
    stage draws the token at position `start + len(tokens)`.

    A sequence that begins with a shared prefix starts at `len(history)`: `history` is then what its first blocks
    hold already. A slice with `params` begins a sequence: it clears the slot's block table and what was sampled.
    `new_blocks` are appended to the slot's block table before the slice is computed; position p of the sequence
    lives in block `table[p // BLOCK_TOKENS]`.

    The last `drafts` of `tokens` are guesses. The last stage then draws after each of the last `drafts + 1` tokens,
    in order, as long as the guess before was what it drew: 1 to `drafts + 1` tokens come back, and the next slice
    starts behind the last one that was right.

    `guesses_wanted` of the tokens behind the last one drawn are to come back with it, from the draft model. Their
    keys go to the same places of a cache of its own: there are as many guesses as the slot's blocks have room for.
    """

    slot: int
    start: int
    tokens: list[int]
    samples: bool
    params: SamplingParams | None = None
    new_blocks: list[int] = []
    history: list[int] = []
    drafts: int = 0
    masks: bytes = b""
    """Tokens that may be drawn: `drafts + 1` bit masks behind each other, each of ceil(vocabulary / 32)
    little-endian 32-bit words, lowest bit first. Empty: all."""
    embeds: bool = False
    """Report the final hidden state of the slice's last token (after the final norm) instead of drawing one."""
    guesses_wanted: int = 0


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """One micro-batch through all stages. `step_id` grows by one; ranks execute steps in that order."""

    step_id: int
    slices: list[SequenceSlice]


GatewayMessage = OpenStep | Step


# --- rank -> gateway ----------------------------------------------------------------------------------


class StepOpened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    rank_id: str
    generation: int


class StepRefused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    error: ErrorDetail


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """`logprobs` are (token, natural logarithm): the chosen token, then the likeliest ones; empty unless asked for.

    The chosen one is there twice when it is among the likeliest.
    """

    slot: int
    position: int
    token: int
    logprobs: list[tuple[int, float]] = []


class EmbeddedSlice(msgspec.Struct, frozen=True, array_like=True):
    """The final hidden state of the last token of a slice: `hidden size` little-endian float32 values."""

    slot: int
    values: bytes


class StepDone(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """From the leader of the last stage: for each slice that samples, in the step's order, the token that was
    drawn, or with drafts as many as were right and one more, positions ascending.

    `guesses` are the draft model's: for each slice that wants some, in the step's order, at most as many as it
    wants; empty where none of them gets any.
    """

    step_id: int
    tokens: list[SampledToken]
    embeddings: list[EmbeddedSlice] = []
    guesses: list[list[int]] = []


class StepFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """From any rank: it can execute no further step of this generation (a link broke, memory ran out …)."""

    step_id: int
    error: ErrorDetail


RankMessage = StepOpened | StepRefused | StepDone | StepFailed
