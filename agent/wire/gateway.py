"""Messages to a gateway process: its start file, and what its supervisor asks of it over its unix socket.

The same unix socket also answers the client API, so that `odctl run` needs no open port.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import ErrorDetail
from agent.facts.model import ModelSpec
from agent.planner.plan import Serving
from agent.wire.rank import TlsFiles

BackendState = Literal["attached", "active", "draining", "broken"]
InFlightState = Literal["queued", "running", "waiting"]
"""queued: for a slot. waiting: for a generation that replaces a broken one."""


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that a gateway is told at start, as a JSON file: `python -m agent.api FILE`."""

    cluster: str
    host: str
    listen: str
    """`address:port` of the client API."""
    socket: str
    agent_socket: str
    tls: TlsFiles
    api_keys: tuple[str, ...] = ()
    """Required by clients when not empty; `listen` outside loopback needs at least one."""


class RankEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    rank_id: str
    host: str
    address: str
    port: int


class AttachBackend(msgspec.Struct, frozen=True, kw_only=True):
    """POST /control/attach: connect to every rank of a generation. Not yet used by clients.

    `replicas[r][s][t]` is the endpoint of tensor index t of stage s of replica r. `replica_generations[r]` is the
    generation under which that replica is linked (empty: all under `generation`). One linked earlier needs no
    endpoints: at activation it is taken over, with its requests, from the backend that runs it. 0: out of
    service, for a host of it is lost.
    """

    deployment: str
    generation: int
    plan_hash: str
    model: ModelSpec
    model_dir: str
    """Directory with tokenizer.json, tokenizer_config.json, generation_config.json (no weights needed)."""
    replicas: tuple[tuple[tuple[RankEndpoint, ...], ...], ...]
    serving: Serving
    draft_cost: float | None = None
    """What a pass of the draft model takes of a token's time, as planned; None without one."""
    replica_generations: tuple[int, ...] = ()

    def generation_of(self, replica: int) -> int:
        return self.replica_generations[replica] if self.replica_generations else self.generation


class BackendRef(msgspec.Struct, frozen=True, kw_only=True):
    """Names one backend: body of POST /control/check, /control/activate, /control/retire, /control/detach.

    check: run the canary (below). activate: new requests go here, at once and atomically; the previous
    generation drains. retire: no new requests, wait up to `drain_s` for running ones, then detach. detach: at
    once; running requests end with an error.
    """

    deployment: str
    generation: int
    drain_s: float = 30.0


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /control/check: every replica decoded a canary prompt and agreed with its own prefill.

    The canary decodes a few tokens greedily, then prefills prompt and tokens in one go: the token after each
    must be the same, or KV cache, positions or links are wrong. Times are of one more run, when all is warm.
    """

    is_ok: bool
    reason: str
    prompt_tokens: int
    ttft_s: float
    time_per_token_s: float
    tokens: tuple[int, ...]


class BackendStatus(msgspec.Struct, frozen=True, kw_only=True):
    deployment: str
    generation: int
    plan_hash: str
    state: BackendState
    running: int
    queued: int
    slots: int
    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int
    generated_tokens: int
    tokens_per_s: float
    """Generated tokens over the last ten seconds, per second."""
    ttft_s_p50: float
    ttft_s_p95: float
    time_per_token_s_p50: float
    time_per_token_s_p95: float
    error: ErrorDetail | None = None
    broken_replicas: tuple[int, ...] = ()
    prefix_hit_tokens: int = 0
    """Positions of prompts that were found computed in the KV cache."""
    preemptions: int = 0
    """Times that a request lost its blocks to a more important one, and was computed again."""
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    blocks_held: int = 0
    """Of the KV cache, by sequences that run: none when nothing does."""
    busy_s: float = 0.0
    """Seconds in which a request waited or ran. This and the sums below are since the backend began."""
    ttft_s_sum: float = 0.0
    num_first_tokens: int = 0
    decode_s_sum: float = 0.0
    """Seconds between first and last tokens of the requests that ended; `decoded_tokens` came in them."""
    decoded_tokens: int = 0
    tokens_by_streams: dict[int, int] = {}
    """Generated tokens by how many requests ran in their replica when they were drawn; empty: not counted by a
    gateway of an earlier release."""
    kv_blocks: int = 0
    """Blocks of the KV cache, all replicas together, of which `blocks_held` are in use. 0: a gateway of an earlier
    release, which does not count them."""


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """One request in flight, as its gateway sees it. Ages are seconds at the moment of the answer."""

    request_id: str
    """What the gateway gave its client as `x-request-id`; further choices of one call end in `.1`, `.2` …"""
    generation: int
    """Of the backend that has it; 0 while it waits for one."""
    replica: int | None
    """None while it waits for a generation."""
    state: InFlightState
    client: str
    """An address, the fingerprint of an API key, or `local` for the gateway's unix socket."""
    priority: int
    prompt_tokens: int
    computed_tokens: int
    """Positions in the KV cache, or on their way there: a prompt is computed when this reaches `prompt_tokens`."""
    generated_tokens: int
    max_tokens: int | None
    """None: as many as the context has room for."""
    age_s: float
    """Since it arrived."""
    ttft_s: float | None = None
    """None before its first token."""
    tokens_per_s: float | None = None
    """Of the tokens after the first; None before there are two."""
    embeds: bool = False
    """It asks for the embedding of its prompt: no token is generated."""


class RequestReport(msgspec.Struct, frozen=True, kw_only=True):
    """Requests in flight of one deployment: those that run, then those that wait in the order of their turn."""

    deployment: str
    requests: tuple[RequestView, ...]


class AskRequests(msgspec.Struct, frozen=True, kw_only=True):
    """POST /control/requests -> RequestReport."""

    deployment: str


class CancelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /control/cancel -> RequestView, as it was when it ended. Its client gets an error, E820.

    `request_id` may be an unambiguous beginning, with or without `req_`. E125 when there is none, or several.
    """

    deployment: str
    request_id: str
    by: str
    """Who asks: `user@machine:pid`."""


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """GET /control/status."""

    pid: int
    listen: str
    backends: tuple[BackendStatus, ...]


class BackendReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway tells its agent (POST /v1/report) when a backend breaks under it."""

    deployment: str
    generation: int
    rank_id: str
    host: str
    error: ErrorDetail
    failed_streams: int
