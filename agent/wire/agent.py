"""Messages to and from an agent: the control API that operators use, and what controllers ask of members.

Bodies are msgpack (`application/msgpack`); streams are framed msgpack (`wire.framing`). The control plane (unix
socket) serves all of it; the cluster plane (TLS, both ends with a certificate) serves `CLUSTER_ROUTES` only.

| route | body -> answer |
|---|---|
| GET /v1/facts | HostFacts |
| GET /v1/handshake | Handshake |
| GET /v1/samples?history_s=N&follow=1 | frames of HostSample: the past first, then live |
| GET /v1/models | tuple[ModelHolding, ...] |
| GET /v1/deployments | tuple[DeploymentRecord, ...]: those this agent knows, as controller or member |
| GET /v1/deployments/{name} | DeploymentStatus (controller only; 404 E701 elsewhere, naming the controller) |
| GET /v1/requests/{name} | wire.gateway: RequestReport (controller only), through the agent of the gateway's host |
| POST /v1/requests/cancel | wire.gateway: CancelRequest -> RequestView (controller only), likewise |
| GET /v1/events?after=N&limit=M&follow=1 | frames of Event |
| GET /v1/faults | FaultReport |
| GET /v1/learning | planner.learning.records: Lessons of the deployments that this agent decided for |
| GET /v1/runs | RunReport |
| GET /v1/history | wire.history: GenerationHistory of the deployments that this agent decided for |
| GET /v1/logs?name=X&tail=N | text/plain; without a name, the names |
| GET /v1/logs?name=X&tail=N&frames=1&follow=1 | frames of wire.host: LogLines, of every log without a name |
| GET /v1/kernel?tail=N | wire.host: KernelLog |
| POST /v1/end_process | wire.host: EndProcess -> Done |
| POST /v1/restart | wire.host: RestartAgent -> Done |
| POST /v1/apply | ApplyRequest -> frames of ApplyEvent |
| POST /v1/abort | AbortRequest -> Done |
| POST /v1/destroy | DestroyRequest -> frames of ApplyEvent |
| POST /v1/instruct | Instruction -> InstructionReply |
| POST /v1/store | StoreRequest -> StoreReply |
| POST /v1/report | BackendReport -> Done |
| POST /v1/ranges | RangeRequest -> raw bytes, header x-sha256 |
| POST /v1/manifest | ModelQuery -> ModelManifest |
| POST /v1/check | wire.accuracy: CheckModel -> AccuracyReport, which may take half an hour |
| GET /v1/probes | facts.probe: ProbeRecord, as it was last measured |
| POST /v1/probe | wire.probe: ProbeDevices -> facts.probe: HostProbe |
| POST /v1/probe/model | wire.probe: ProbeModel -> facts.probe: HostProbe |
| POST /v1/probe/links | wire.probe: ProbeLinks -> LinkReport |
| GET /v1/heartbeat?controller=HOST | Heartbeat |
| PUT /v1/upload/{digest}/{file}?offset=N | raw bytes -> UploadReply: an operator's model, through SSH |

Errors are status 4xx or 5xx with an `ErrorDetail` body.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import ErrorDetail
from agent.facts.fault import Fault
from agent.facts.model import ModelSpec
from agent.facts.run import MeasuredRun
from agent.planner.plan import ModelRef, Predicted, Serving
from agent.planner.shards import ShardExtent
from agent.wire.gateway import (
    AttachBackend,
    BackendRef,
    BackendStatus,
    CancelRequest,
    CheckReport,
    RequestView,
)
from agent.wire.history import Cause
from agent.wire.rank import LinkRank, RankStatus

PROTOCOL_VERSION = 1
CLUSTER_ROUTES = (
    "/v1/handshake",
    "/v1/facts",
    "/v1/instruct",
    "/v1/store",
    "/v1/report",
    "/v1/ranges",
    "/v1/manifest",
    "/v1/heartbeat",
)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`etc/agent.json` under the prefix: all that an agent is told at start. Written by bootstrap."""

    cluster: str
    host: str
    prefix: str
    cluster_address: str
    cluster_port: int
    labels: dict[str, str] = {}
    memory_fraction: float = 0.9
    """Share of each device's memory that we may use."""
    devices: tuple[str, ...] = ()
    """Device ids to use; empty: all."""
    threads: int = 0
    """Compute threads of a CPU rank; 0: all cores."""
    is_degraded: bool = False
    """True where no systemd user unit keeps us: shown, because a reboot then loses the agent."""
    model_dirs: tuple[str, ...] = ()
    """Further directories with models, beside `var/models` of the prefix."""
    release: str = ""


class Handshake(msgspec.Struct, frozen=True, kw_only=True):
    """First question of a bootstrap: who answers, in which release, and does it speak our protocol?"""

    host: str
    cluster: str
    release: str
    protocol: int
    pid: int
    boot_id: str
    started_at_s: float
    is_degraded: bool


class HostAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent listens on the cluster plane."""

    host: str
    address: str
    port: int


class Done(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""


# --- models -------------------------------------------------------------------------------------------


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size: int
    sha256: str


class ModelManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Every file of a model directory with its hash, and the spec. `digest` hashes the sorted file list."""

    digest: str
    files: tuple[ManifestFile, ...]
    spec: ModelSpec


class ModelHolding(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one host: complete in `path`, or only these shards of it."""

    host: str
    name: str
    path: str
    digest: str
    family: str
    num_parameters: int
    size_bytes: int
    is_complete: bool
    held_bytes: int
    trouble: str = ""
    """Why it cannot be run: a broken or unsupported model."""
    quantisation: str = ""
    """GGUF's name of what most of its weights are stored as (`Q4_K`); empty: they are not quantised."""


class ModelQuery(msgspec.Struct, frozen=True, kw_only=True):
    """By digest, or by path when the digest is not known yet."""

    digest: str = ""
    path: str = ""


class ByteRange(msgspec.Struct, frozen=True, array_like=True):
    """`count` pieces of `length` bytes, `stride` bytes apart, from `offset` of a file: a cut through a matrix."""

    file: str
    offset: int
    length: int
    stride: int
    count: int

    @property
    def num_bytes(self) -> int:
        return self.length * self.count


class RangeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is the ranges' bytes in order; its header `x-sha256` is their hash."""

    digest: str
    ranges: list[ByteRange]


class UploadReply(msgspec.Struct, frozen=True, kw_only=True):
    """`received` bytes of the file are on disk; an upload that was cut off goes on from there."""

    received: int
    is_complete: bool


# --- rendezvous ---------------------------------------------------------------------------------------


class StoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """torch.distributed's store, as gloo needs it: `get` and `wait` block until the key is set or time is up.

    `controller` is the host whose agent keeps the store; other agents pass the request on. Keys begin with
    `deployment/generation/`.
    """

    op: Literal["set", "get", "wait", "check", "add", "delete"]
    controller: str
    keys: tuple[str, ...]
    value: bytes = b""
    amount: int = 0
    timeout_s: float = 5.0


class StoreReply(msgspec.Struct, frozen=True, kw_only=True):
    value: bytes = b""
    number: int = 0
    is_set: bool = False


# --- deployments --------------------------------------------------------------------------------------

DeploymentState = Literal["serving", "healing", "degraded", "stopped", "failed"]
ApplyPhase = Literal[
    "prepare", "fetch", "start", "link", "warm", "check", "switch", "commit", "retire", "done", "roll_back"
]


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What every member remembers of a deployment: the fence, and who decides.

    `generation` is the committed one. `pending_generation` is non-zero while an apply by `lock_holder` is
    under way; the lock falls by itself at `lock_expires_at_s` (seconds since the epoch, this host's clock).
    """

    name: str
    generation: int
    plan_hash: str
    controller: str
    members: tuple[HostAddress, ...]
    gateway_host: str = ""
    spawn_generation: int = 0
    """Generation under which the processes were started; healing moves `generation` past it."""
    pending_generation: int = 0
    lock_holder: str = ""
    lock_expires_at_s: float = 0.0


class RankView(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    rank_id: str
    device: str
    status: RankStatus | None
    restarts: int = 0
    trouble: str = ""


class DeploymentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as its controller sees it."""

    name: str
    generation: int
    plan_hash: str
    controller: str
    state: DeploymentState
    reason: str
    """Why it is not `serving`; empty when it is."""
    way_out: str
    plan_toml: str
    listen: str
    gateway_host: str
    gateway_socket: str
    applied_at_s: float
    ranks: tuple[RankView, ...]
    backend: BackendStatus | None
    predicted: Predicted
    checked: CheckReport | None
    apply_phase: ApplyPhase | None = None


class ApplyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`expected_generation` is what the operator saw (0: not deployed); another one is refused with E401."""

    plan_toml: str
    plan_hash: str
    spec: ModelSpec
    members: tuple[HostAddress, ...]
    """Where the controller reaches every host of the plan."""
    expected_generation: int
    holder: str
    running: DeploymentRecord | None = None
    """What the operator saw run: a controller that has no part in it knows by this whom to relieve."""
    draft_spec: ModelSpec | None = None
    """Of the plan's draft model."""
    sources: tuple[HostAddress, ...] = ()
    """Hosts that have the plan's models and no part in it."""
    stop_after: ApplyPhase | None = None
    """For tests of interrupted applies: hold before the phase that follows this one until aborted."""
    cause: Cause = "apply"
    """For the history, with `reason`."""
    reason: str = ""


class AbortRequest(msgspec.Struct, frozen=True, kw_only=True):
    deployment: str
    holder: str


class DestroyRequest(msgspec.Struct, frozen=True, kw_only=True):
    deployment: str
    holder: str


class ApplyEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of progress. `state` is that of the phase; the stream's last event is phase `done` or an error."""

    phase: ApplyPhase
    state: Literal["started", "progress", "finished", "failed"]
    host: str = ""
    message: str = ""
    done: int = 0
    total: int = 0
    at_s: float = 0.0
    generation: int = 0
    error: ErrorDetail | None = None
    checked: CheckReport | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One journal entry. `kind` is past tense (`RankLost`, `GenerationCommitted`); `body` is its JSON text."""

    event_id: int
    at_s: float
    host: str
    kind: str
    deployment: str
    generation: int
    plan_hash: str
    body: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """`ranks` are those of the host that run, per deployment, with their states."""

    host: str
    boot_id: str
    started_at_s: float
    at_s: float
    ranks: tuple[RankStatus, ...]
    unheard_ranks: tuple[UnheardRank, ...] = ()
    dead_ranks: tuple[DeadRank, ...] = ()
    gateways: tuple[str, ...] = ()
    """Addresses of the gateways that run here."""
    backends: tuple[BackendStatus, ...] = ()
    """What these gateways last said of their backends."""
    was_killed: bool = False
    """The agent before this one ended without a word."""
    dead_gateways: dict[str, dict[str, str | int | float]] = {}
    """Evidence of gateways that ended unasked and were not started again yet, by address."""


class UnheardRank(msgspec.Struct, frozen=True, kw_only=True):
    """A rank process that runs and has not answered this agent yet: it starts, or the host is busy."""

    deployment: str
    spawn_generation: int
    rank_id: str


class DeadRank(msgspec.Struct, frozen=True, kw_only=True):
    """A rank process that ended without being told to, or was killed because it hung."""

    deployment: str
    generation: int
    rank_id: str
    pid: int
    kind: Literal["rank_lost", "rank_hung", "rank_failed"]
    evidence: dict[str, str | int | float]
    at_s: float


# --- instructions: controller -> member ---------------------------------------------------------------


class Prepare(msgspec.Struct, frozen=True, kw_only=True, tag="prepare"):
    """Take the lock and reserve `generation`. E401 when the host's generation is another, E501 when locked."""

    deployment: str
    expected_generation: int
    generation: int
    holder: str
    controller: str
    lease_s: float
    members: tuple[HostAddress, ...] = ()
    """Where members reach each other before the first commit tells them: links meet at the controller."""


class FetchShards(msgspec.Struct, frozen=True, kw_only=True, tag="fetch_shards"):
    """Have tokenizer files and the slices of these extents on disk. `sources` are hosts to fetch from, in order."""

    deployment: str
    generation: int
    model: ModelRef
    spec: ModelSpec
    extents: dict[str, ShardExtent]
    """Rank id to its extent; empty: the small files only (a gateway's host)."""
    sources: tuple[HostAddress, ...]


class StartRanks(msgspec.Struct, frozen=True, kw_only=True, tag="start_ranks"):
    """Spawn these ranks. The member fills in paths (sockets, TLS files, model and shard files) itself."""

    deployment: str
    generation: int
    plan_hash: str
    model: ModelRef
    spec: ModelSpec
    serving: Serving
    ranks: tuple[RankStart, ...]
    draft: ModelRef | None = None
    draft_spec: ModelSpec | None = None
    """Of the draft model, for those ranks that have one."""


class RankStart(msgspec.Struct, frozen=True, kw_only=True):
    rank_id: str
    device: str
    extent: ShardExtent
    tensor_index: int
    has_draft: bool = False
    """It draws, and holds the draft model as well."""


class AskRanks(msgspec.Struct, frozen=True, kw_only=True, tag="ask_ranks"):
    """Statuses of this host's ranks of a deployment that were started under `generation` (0: any)."""

    deployment: str
    generation: int = 0


class LinkRanks(msgspec.Struct, frozen=True, kw_only=True, tag="link_ranks"):
    """Pass these to the named ranks, all at once, and answer when each has linked or failed."""

    deployment: str
    links: dict[str, LinkRank]
    from_generation: int = 0
    """Generation under which the processes were started, where that differs from the links' own."""


class UnlinkRanks(msgspec.Struct, frozen=True, kw_only=True, tag="unlink_ranks"):
    """Have these ranks drop their links and stop waiting for others: linking has failed elsewhere."""

    deployment: str
    rank_ids: tuple[str, ...]
    from_generation: int


class StopRanks(msgspec.Struct, frozen=True, kw_only=True, tag="stop_ranks"):
    """Stop this host's ranks of the deployment, but for those started under the generations kept."""

    deployment: str
    keep_generations: tuple[int, ...]


class RestartRank(msgspec.Struct, frozen=True, kw_only=True, tag="restart_rank"):
    """Spawn a dead rank anew from its own config, under the same spawn generation."""

    deployment: str
    generation: int
    rank_id: str


class RetireBackends(msgspec.Struct, frozen=True, kw_only=True, tag="retire_backends"):
    """Drain and detach the deployment's backends older than `generation` on every gateway of this host."""

    deployment: str
    generation: int
    drain_s: float


class EnsureGateway(msgspec.Struct, frozen=True, kw_only=True, tag="ensure_gateway"):
    """Run a gateway on `listen` unless one does already."""

    listen: str


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Member fills in `backend.model_dir`."""

    listen: str
    backend: AttachBackend
    model: ModelRef


class TellGateway(msgspec.Struct, frozen=True, kw_only=True, tag="tell_gateway"):
    listen: str
    verb: Literal["check", "activate", "retire", "detach"]
    backend: BackendRef


class AskGateway(msgspec.Struct, frozen=True, kw_only=True, tag="ask_gateway"):
    listen: str


class ListRequests(msgspec.Struct, frozen=True, kw_only=True, tag="list_requests"):
    """What the gateway there has in flight of a deployment."""

    listen: str
    deployment: str


class EndRequest(msgspec.Struct, frozen=True, kw_only=True, tag="end_request"):
    """Have the gateway there cancel one request; the reply's `requests` is that one."""

    listen: str
    cancel: CancelRequest


class Commit(msgspec.Struct, frozen=True, kw_only=True, tag="commit"):
    """The generation is the deployment's now: remember the record and release the lock."""

    record: DeploymentRecord


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release"):
    """Give back the lock of an apply that rolled back; another holder's stays."""

    deployment: str
    generation: int
    holder: str = ""


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """Stop everything of the deployment on this host and drop its record.

    `before_generation` (0: whatever it is): a host that has a newer record is a member again, and does nothing.
    """

    deployment: str
    before_generation: int = 0


Instruction = (
    Prepare
    | FetchShards
    | StartRanks
    | AskRanks
    | LinkRanks
    | UnlinkRanks
    | StopRanks
    | RestartRank
    | RetireBackends
    | EnsureGateway
    | Attach
    | TellGateway
    | AskGateway
    | ListRequests
    | EndRequest
    | Commit
    | Release
    | Forget
)


class InstructionReply(msgspec.Struct, frozen=True, kw_only=True):
    """What fits the instruction; the rest is empty."""

    ranks: tuple[RankStatus, ...] = ()
    dead_ranks: tuple[DeadRank, ...] = ()
    checked: CheckReport | None = None
    backends: tuple[BackendStatus, ...] = ()
    fetched_bytes: int = 0
    socket: str = ""
    requests: tuple[RequestView, ...] = ()


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/runs: what deployments of this controller did, oldest first."""

    runs: tuple[MeasuredRun, ...]


class FaultReport(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/faults: newest first, open ones before healed ones."""

    faults: tuple[Fault, ...]
