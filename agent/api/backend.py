"""One generation of a deployment under a gateway: its replicas, their schedulers and step channels."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable

import msgspec

from agent.api.step_channel import RankLost, StepChannel
from agent.errors import ErrorDetail, FleetError
from agent.serving.balance import choose_replica, even_out, load_of
from agent.serving.chat import ChatTemplate
from agent.serving.metrics import ServingMetrics
from agent.serving.request import Request
from agent.serving.scheduler import Embedding, Scheduler
from agent.serving.tokens import ModelTokens
from agent.wire.framing import encode_frame
from agent.wire.gateway import AttachBackend, BackendState, BackendStatus, RankEndpoint
from agent.wire.rank import OpenStep, StepDone

log = logging.getLogger(__name__)

STEP_TIMEOUT_S = 600.0
"""Backstop only: the supervisor sees a rank that makes no progress long before."""
RETRY_AFTER_S = 2
"""What clients are told to wait when a replica broke under them: healing takes seconds."""


class LostRank(msgspec.Struct, frozen=True, kw_only=True):
    """Who broke a replica, by the best evidence so far."""

    endpoint: RankEndpoint
    error: ErrorDetail
    is_end_of_stream: bool


class Replica:
    """One full copy of the model: a scheduler and a channel to each of its ranks, in order."""

    def __init__(
        self,
        channels: list[StepChannel],
        *,
        index: int,
        owner: Backend,
        leader: RankEndpoint,
        scheduler: Scheduler,
    ) -> None:
        self.channels = channels
        self.index = index
        self.generation = owner.generation
        """Under which its ranks are linked."""
        self.owner = owner
        """The backend that it serves for; a later generation that keeps its links takes it over."""
        self.leader = leader
        """Tensor index 0 of the last stage: the one that answers."""
        self.scheduler = scheduler
        self.blame: LostRank | None = None
        self.deadline: asyncio.TimerHandle | None = None

    @property
    def is_broken(self) -> bool:
        return self.blame is not None


class Backend:
    """Replicas of one generation behind one queue limit. Used on one event loop.

    A replica that loses a rank ends its running requests with an error; other replicas serve on. `on_broken`
    is called after that, for each lost replica, with the number of requests that it ended. When no replica is
    left (`is_usable`), what waits in the queue is the caller's to take (`take_queued`).
    """

    def __init__(
        self,
        attach: AttachBackend,
        *,
        tokens: ModelTokens,
        chat: ChatTemplate,
        on_broken: Callable[[Backend, Replica, int], None],
    ) -> None:
        self.attach = attach
        self.tokens = tokens
        self.chat = chat
        self.attached_at_s = time.time()
        self.state: BackendState = "attached"
        self.error: ErrorDetail | None = None
        self.metrics = ServingMetrics()
        self.on_idle: Callable[[], None] = lambda: None
        self._replicas: list[Replica] = []
        self._on_broken = on_broken
        self._is_closed = False

    @property
    def deployment(self) -> str:
        return self.attach.deployment

    @property
    def generation(self) -> int:
        return self.attach.generation

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self._replicas)

    @property
    def is_usable(self) -> bool:
        """At least one replica can still take requests."""
        return not self._is_closed and any(not replica.is_broken for replica in self._replicas)

    @property
    def is_idle(self) -> bool:
        return all(replica.scheduler.is_idle for replica in self._replicas)

    async def open(self, *, tls: ssl.SSLContext, cluster: str, gateway: str) -> None:
        """Connect to every rank. Raises FleetError when one cannot be had; then nothing stays open."""
        hello = OpenStep(deployment=self.deployment, generation=self.generation, gateway=gateway)
        opened: list[StepChannel] = []

        fresh = [
            (index, stages)
            for index, stages in enumerate(self.attach.replicas)
            if self.attach.generation_of(index) == self.generation
        ]

        async def connect(endpoint: RankEndpoint) -> StepChannel:
            channel = await StepChannel.open(endpoint, tls=tls, cluster=cluster, hello=hello)
            opened.append(channel)
            return channel

        try:
            async with asyncio.TaskGroup() as group:
                connecting = [
                    [group.create_task(connect(endpoint)) for stage in stages for endpoint in stage]
                    for _, stages in fresh
                ]
        except BaseException as failure:
            for channel in opened:
                channel.close()
            if isinstance(failure, ExceptionGroup) and isinstance(failure.exceptions[0], FleetError):
                raise failure.exceptions[0] from None
            raise
        self._replicas = [
            Replica(
                [task.result() for task in tasks],
                index=index,
                owner=self,
                leader=stages[-1][0],
                scheduler=Scheduler.of_replica(
                    self.attach.serving, num_stages=len(stages), draft_cost=self.attach.draft_cost
                ),
            )
            for tasks, (index, stages) in zip(connecting, fresh, strict=True)
        ]

    def take_over(self, previous: Backend | None) -> None:
        """Move the replicas whose links this generation keeps, with all that runs on them. Raises FleetError E810
        when one of them is not whole any more; then nothing has moved.
        """
        kept = {
            index
            for index in range(len(self.attach.replicas))
            if self.attach.generation_of(index) not in (0, self.generation)
        }
        whole = {
            replica.index: replica
            for replica in (previous.replicas if previous is not None else ())
            if not replica.is_broken and replica.generation == self.attach.generation_of(replica.index)
        }
        lost = sorted(kept - whole.keys())
        if lost:
            raise FleetError("E810", f"replica {lost[0]} of {self.deployment} broke before it was taken over")
        if previous is not None:
            previous._replicas = [replica for replica in previous._replicas if replica.index not in kept]
        for index in sorted(kept):
            whole[index].owner = self
            self._replicas.append(whole[index])
        self._replicas.sort(key=lambda replica: replica.index)

    async def run(self) -> None:
        """Receive results until `close`."""
        async with asyncio.TaskGroup() as group:
            for replica in self._replicas:
                for channel in replica.channels:
                    group.create_task(self._receive(replica, channel))

    def submit(self, request: Request, *, replica: Replica | None = None) -> None:
        """Queue on the least loaded replica, or on the one that is meant. Raises QueueFull."""
        if replica is None:
            usable = self._usable()
            chosen = choose_replica([each.scheduler for each in usable], queue=self.attach.serving.queue)
            replica = usable[chosen]
        assert not replica.is_broken, "the caller sees to it that the replica is whole"
        replica.scheduler.submit(request)
        self._pump(replica)

    def cancel(self, request: Request) -> None:
        """The client is gone: free its slot."""
        was_over = request.is_over
        for replica in self._replicas:
            replica.scheduler.cancel(request)
        if not was_over and request.is_over:
            self.metrics.count_end(request)
        for replica in self._replicas:
            self._pump(replica)

    def take_queued(self) -> list[Request]:
        """All requests that have not started, in order of arrival: they go elsewhere."""
        queued = [request for replica in self._replicas for request in replica.scheduler.take_queued()]
        return sorted(queued, key=lambda request: request.arrived_s)

    def close(self, error: ErrorDetail) -> None:
        """Drop the connections; what still runs or waits ends with this error."""
        self._is_closed = True
        for replica in self._replicas:
            for request in [*replica.scheduler.abandon(), *replica.scheduler.take_queued()]:
                self._fail(request, error)
            self._disarm(replica)
            for channel in replica.channels:
                channel.close()
        self.on_idle()

    def status(self) -> BackendStatus:
        snapshot = self.metrics.snapshot(time.monotonic())
        counts = [replica.scheduler.counts for replica in self._replicas]
        return BackendStatus(
            deployment=self.deployment,
            generation=self.generation,
            plan_hash=self.attach.plan_hash,
            state=self.state,
            running=sum(replica.scheduler.num_running for replica in self._replicas),
            queued=sum(replica.scheduler.num_queued for replica in self._replicas),
            slots=sum(replica.scheduler.slots for replica in self._replicas),
            error=self.error,
            broken_replicas=tuple(replica.index for replica in self._replicas if replica.is_broken),
            prefix_hit_tokens=sum(each.prefix_hit_tokens for each in counts),
            preemptions=sum(each.preemptions for each in counts),
            drafts_proposed=sum(each.drafts_proposed for each in counts),
            drafts_accepted=sum(each.drafts_accepted for each in counts),
            blocks_held=sum(replica.scheduler.num_blocks_held for replica in self._replicas),
            kv_blocks=sum(replica.scheduler.num_blocks for replica in self._replicas),
            **msgspec.structs.asdict(snapshot),
        )

    async def _receive(self, replica: Replica, channel: StepChannel) -> None:
        """For whoever owns the replica by then."""
        while True:
            try:
                done = await channel.receive()
                replica.owner._complete(replica, channel, done)
            except RankLost as lost:
                error, is_end_of_stream = lost.error, lost.is_end_of_stream
                replica.owner._break(replica, channel.endpoint, error, is_end_of_stream=is_end_of_stream)
                return
            except FleetError as trouble:
                replica.owner._break(replica, channel.endpoint, trouble.detail, is_end_of_stream=False)
                return

    def _complete(self, replica: Replica, channel: StepChannel, done: StepDone) -> None:
        if replica.is_broken or self._is_closed:
            return
        if channel.endpoint != replica.leader:
            raise FleetError("E810", f"rank {channel.endpoint.rank_id} answered a step in its leader's place")
        now_s, streams = time.monotonic(), replica.scheduler.num_running
        for advance in replica.scheduler.complete(done):
            request = advance.request
            if isinstance(advance, Embedding):
                request.deliver_embedding(advance.values, now_s)
                self.metrics.count_embedding(request)
                self.metrics.count_end(request)
                continue
            was_over = request.is_over
            if was_over:
                continue  # a stop string ended it among the tokens of one step
            is_stopped = request.deliver(advance.sampled, advance.finish, now_s)
            self.metrics.count_token(request, now_s, streams=streams)
            if is_stopped:
                replica.scheduler.cancel(request)
            if request.is_over:
                self.metrics.count_end(request)
        self._disarm(replica)
        self._pump(replica)

    def _pump(self, replica: Replica) -> None:
        """Send every step that may be sent now."""
        if replica.is_broken or self._is_closed:
            return
        others = [each.scheduler for each in self._replicas if each is not replica]
        even_out(replica.scheduler, others)
        while (step := replica.scheduler.next_step()) is not None:
            now_s = time.monotonic()
            for request in replica.scheduler.requests_starting_in(step):
                request.started_s = request.started_s or now_s
            frame = encode_frame(step)
            for channel in replica.channels:
                channel.send(frame)
        if replica.scheduler.num_in_flight and replica.deadline is None:
            replica.deadline = asyncio.get_running_loop().call_later(STEP_TIMEOUT_S, self._step_overdue, replica)
        if replica.scheduler.is_idle:
            replica.scheduler.check_integrity()
            if self.is_idle:
                self.on_idle()

    def _step_overdue(self, replica: Replica) -> None:
        error = ErrorDetail(
            code="E810",
            message=f"no answer to a step within {STEP_TIMEOUT_S:.0f} s",
            host=replica.leader.host,
        )
        replica.owner._break(replica, replica.leader, error, is_end_of_stream=False)

    def _disarm(self, replica: Replica) -> None:
        if replica.deadline is not None:
            replica.deadline.cancel()
            replica.deadline = None

    def _break(
        self, replica: Replica, endpoint: RankEndpoint, error: ErrorDetail, *, is_end_of_stream: bool
    ) -> None:
        """Tell the replica's running requests at once, then the gateway.

        When a rank dies its neighbours report a broken link, and may be heard first: the rank whose stream
        ended is the better witness of its own death.
        """
        if self._is_closed:
            return
        was_broken = replica.is_broken
        if replica.blame is None or (is_end_of_stream and not replica.blame.is_end_of_stream):
            replica.blame = LostRank(endpoint=endpoint, error=error, is_end_of_stream=is_end_of_stream)
            self.error = error
        if was_broken:
            return
        self.state = "broken"
        self._disarm(replica)
        log.warning(
            "replica broken",
            extra={"deployment": self.deployment, "generation": self.generation, "rank": endpoint.rank_id},
        )
        lost = replica.scheduler.abandon()
        for request in lost:
            self._fail(request, error)
        usable = self._usable()
        for request in replica.scheduler.take_queued() if usable else ():
            min((each.scheduler for each in usable), key=load_of).submit(request)
        for each in usable:
            self._pump(each)
        self._on_broken(self, replica, len(lost))
        if self.is_idle:
            self.on_idle()

    def _usable(self) -> list[Replica]:
        return [replica for replica in self._replicas if not replica.is_broken]

    def _fail(self, request: Request, error: ErrorDetail) -> None:
        request.fail(error, retry_after_s=RETRY_AFTER_S)
        self.metrics.count_end(request)
