"""The engine ranks of one host: start, ask, link, stop, and notice when one dies or hangs.

A rank hangs when the kernel says that it is stopped, or when its control thread has been silent for `HANG_S`
while this agent itself ran on time. It is then killed: a dead rank is healed, a hung one blocks its whole
replica.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

import msgspec

from agent.errors import FleetError
from agent.supervisor.paths import HostPaths
from agent.supervisor.processes import ProcessExit, ProcessRecord, ProcessTable, process_state
from agent.wire.agent import AgentConfig, DeadRank, RankStart, StartRanks, UnheardRank
from agent.wire.framing import StreamClosed, decode, encode_frame, read_frame
from agent.wire.rank import (
    DraftConfig,
    GetStatus,
    LinkRank,
    RankConfig,
    RankRequest,
    RankStatus,
    StopRank,
    TlsFiles,
    UnlinkRank,
)

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.25
HANG_S = 1.5
LOADING_HANG_S = 15.0
"""Packing large weights holds the interpreter's lock for seconds; nobody waits for that rank's steps yet."""
STOPPED_S = 0.5
ASK_TIMEOUT_S = 1.0
UNLINK_TIMEOUT_S = 3.0
OWN_STALL_S = 0.5
"""When this agent's own loop was late by more than this, silences are its own fault and count from anew."""
START_GRACE_S = 60.0
"""A rank imports torch before it answers for the first time; it is not asked to hurry."""


class HeldShard(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rank finds its weights: its own shard file, or the model's directory."""

    model_dir: str
    shard_file: str


class RankTable:
    """Ranks of this host, by process name."""

    def __init__(self, config: AgentConfig, paths: HostPaths, processes: ProcessTable) -> None:
        self._config = config
        self._paths = paths
        self._processes = processes
        self._statuses: dict[str, RankStatus] = {}
        self._heard_at: dict[str, float] = {}
        self._stopped_since: dict[str, float] = {}
        self._watched_since: dict[str, float] = {}
        self.dead: dict[str, DeadRank] = {}

    # --- what a controller asks ---------------------------------------------------------------------

    def start(self, order: StartRanks, shards: dict[str, HeldShard], drafts: dict[str, HeldShard]) -> None:
        """`drafts` are of the draft model, for the ranks that have one."""
        for rank in order.ranks:
            name = process_name(order.deployment, order.generation, rank.rank_id)
            if self._processes.get(name) is not None:
                continue
            rank_config = self._rank_config(order, rank, shards[rank.rank_id], drafts.get(rank.rank_id))
            self._paths.run.mkdir(parents=True, exist_ok=True)
            self._paths.config(name).write_bytes(msgspec.json.encode(rank_config))
            self._spawn(name, rank_config)

    def restart(self, deployment: str, generation: int, rank_id: str) -> None:
        """Spawn a dead rank from the config of its first start. Raises E806 when this host never had it."""
        name = process_name(deployment, generation, rank_id)
        self.dead.pop(name, None)
        if self._processes.get(name) is not None:
            return
        try:
            rank_config = msgspec.json.decode(self._paths.config(name).read_bytes(), type=RankConfig)
        except FileNotFoundError as error:
            raise FleetError(
                "E806",
                f"rank {rank_id} of {deployment} generation {generation} was never started here",
                hint="odctl apply starts it anew",
                host=self._config.host,
            ) from error
        self._spawn(name, rank_config)

    def records(self, deployment: str, generation: int | None = None) -> list[ProcessRecord]:
        return [
            record
            for record in self._processes.all("rank")
            if record.deployment == deployment and generation in (None, record.generation)
        ]

    async def ask_all(self, deployment: str, generation: int | None = None) -> tuple[RankStatus, ...]:
        """Fresh statuses of a deployment's ranks here; one that is not up yet is left out."""
        statuses: list[RankStatus] = []

        async def ask_one(record: ProcessRecord) -> None:
            try:
                statuses.append(await ask_rank(record.socket, GetStatus(), timeout_s=ASK_TIMEOUT_S))
            except (OSError, TimeoutError):
                # Not listening yet, or hung: `watch` owns that verdict.
                log.debug("rank does not answer", extra={"child": record.name})

        async with asyncio.TaskGroup() as group:
            for record in self.records(deployment, generation):
                group.create_task(ask_one(record))
        return tuple(sorted(statuses, key=lambda status: status.rank_id))

    async def link(self, deployment: str, generation: int, links: dict[str, LinkRank]) -> tuple[RankStatus, ...]:
        """Pass links to ranks started under `generation`, all at once. Raises E802 naming the rank that failed."""
        statuses: dict[str, RankStatus] = {}
        failures: list[FleetError] = []

        async def link_one(rank_id: str, order: LinkRank) -> None:
            record = self._processes.get(process_name(deployment, generation, rank_id))
            if record is None:
                await fail(
                    FleetError("E802", f"rank {rank_id} of {deployment} does not run", host=self._config.host)
                )
                return
            try:
                status = await ask_rank(record.socket, order, timeout_s=order.timeout_s + 5.0)
            except (OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
                await fail(FleetError("E802", f"rank {rank_id} did not link: {why}", host=self._config.host))
                return
            if status.state == "linked" and status.generation == order.generation:
                statuses[rank_id] = status
                self._statuses[record.name] = status
            elif status.error is not None:
                await fail(FleetError.from_detail(status.error, host=self._config.host))
            else:
                await fail(
                    FleetError("E802", f"rank {rank_id} is {status.state}, not linked", host=self._config.host)
                )

        async def fail(error: FleetError) -> None:
            failures.append(error)
            if len(failures) == 1:
                # The others here wait for this one, or for whom it waited.
                await self.unlink(deployment, generation, links)

        async with asyncio.TaskGroup() as group:
            for rank_id, order in links.items():
                group.create_task(link_one(rank_id, order))
        if failures:
            raise failures[0]
        return tuple(statuses[rank_id] for rank_id in sorted(statuses))

    async def unlink(self, deployment: str, generation: int, rank_ids: Iterable[str]) -> None:
        """Have them drop their links; one that does not hear it is on its way out, or `watch` will see to it."""

        async def unlink_one(record: ProcessRecord) -> None:
            try:
                await ask_rank(record.socket, UnlinkRank(), timeout_s=UNLINK_TIMEOUT_S)
            except (OSError, TimeoutError):
                log.debug("rank does not hear the unlinking", extra={"child": record.name})

        async with asyncio.TaskGroup() as group:
            for rank_id in rank_ids:
                record = self._processes.get(process_name(deployment, generation, rank_id))
                if record is not None:
                    group.create_task(unlink_one(record))

    async def stop(self, deployment: str, keep_generations: tuple[int, ...]) -> None:
        """Stop all ranks of the deployment but those started under the kept generations; forget the dead ones."""
        names = [record.name for record in self.records(deployment) if record.generation not in keep_generations]
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self._stop_one(name))
        for name, dead in list(self.dead.items()):
            if dead.deployment == deployment and dead.generation not in keep_generations:
                del self.dead[name]
        for path in self._paths.run.glob(f"{deployment}-*.config.json"):
            config = msgspec.json.decode(path.read_bytes(), type=RankConfig)
            if config.deployment == deployment and config.generation not in keep_generations:
                path.unlink()

    # --- what the host itself does ------------------------------------------------------------------

    def statuses(self) -> tuple[RankStatus, ...]:
        """The last status of every rank that runs."""
        running = {record.name for record in self._processes.all("rank")}
        return tuple(self._statuses[name] for name in sorted(running) if name in self._statuses)

    def unheard(self) -> tuple[UnheardRank, ...]:
        """Ranks that run and were not heard yet. An agent that adopts them on a busy host may not wait for all."""
        return tuple(
            UnheardRank(deployment=record.deployment, spawn_generation=record.generation, rank_id=record.rank_id)
            for record in self._processes.all("rank")
            if record.name not in self._statuses
        )

    def note_exit(self, event: ProcessExit) -> None:
        """A rank's process ended. Unless it was told to, that is for its controller to know."""
        record = event.record
        status = self._statuses.pop(record.name, None)
        for table in (self._heard_at, self._stopped_since, self._watched_since):
            table.pop(record.name, None)
        if event.was_expected:
            return
        kind = "rank_hung" if "hung_because" in event.evidence else "rank_lost"
        evidence = dict(event.evidence)
        if status is not None and status.error is not None:
            evidence["last_error"] = status.error.message
        log.warning("rank ended", extra={"child": record.name, "evidence": evidence})
        self.dead[record.name] = DeadRank(
            deployment=record.deployment,
            generation=record.generation,
            rank_id=record.rank_id,
            pid=record.pid,
            kind="rank_hung" if kind == "rank_hung" else "rank_lost",
            evidence=evidence,
            at_s=time.time(),
        )

    async def watch(self) -> None:
        """Ask every rank four times a second, for ever; kill one that hangs."""
        while True:
            await self.look()
            asleep_at = time.monotonic()
            await asyncio.sleep(WATCH_INTERVAL_S)
            if time.monotonic() - asleep_at > WATCH_INTERVAL_S + OWN_STALL_S:
                self._forgive_silences()

    async def look(self) -> None:
        """Ask every rank once."""
        async with asyncio.TaskGroup() as group:
            for record in self._processes.all("rank"):
                group.create_task(self._watch_one(record))

    def _forgive_silences(self) -> None:
        now = time.monotonic()
        for name in self._heard_at:
            self._heard_at[name] = now

    async def _watch_one(self, record: ProcessRecord) -> None:
        now = time.monotonic()
        watched_since = self._watched_since.setdefault(record.name, now)
        if process_state(record.pid) in ("T", "t"):
            since = self._stopped_since.setdefault(record.name, now)
            if now - since >= STOPPED_S:
                self._kill_hung(record, "stopped by a signal (kernel state T)", now - since)
            return
        self._stopped_since.pop(record.name, None)
        try:
            status = await ask_rank(record.socket, GetStatus(), timeout_s=ASK_TIMEOUT_S)
        except (OSError, TimeoutError, StreamClosed):
            heard_at = self._heard_at.get(record.name)
            silence = time.monotonic() - (heard_at or watched_since)
            limit = self._patience(record.name)
            if self._processes.get(record.name) is not None and silence >= limit:
                self._kill_hung(record, "its control thread is silent", silence)
            return
        self._statuses[record.name] = status
        self._heard_at[record.name] = time.monotonic()

    def _patience(self, name: str) -> float:
        """Seconds of silence that a rank is allowed, by what it does."""
        status = self._statuses.get(name)
        if status is None:
            return START_GRACE_S
        return LOADING_HANG_S if status.state == "loading" else HANG_S

    def _kill_hung(self, record: ProcessRecord, reason: str, silence_s: float) -> None:
        log.warning("rank hangs", extra={"child": record.name, "reason": reason})
        self._processes.kill(
            record.name,
            because={"hung_because": reason, "silence_s": round(silence_s, 3), "killed_by": "supervisor"},
        )

    async def _stop_one(self, name: str) -> None:
        record = self._processes.get(name)
        if record is None:
            return
        self._processes.expect_exit(name)
        if process_state(record.pid) not in ("T", "t"):
            try:
                await ask_rank(record.socket, StopRank(), timeout_s=ASK_TIMEOUT_S)
            except (OSError, TimeoutError):
                log.info("rank does not hear the stop", extra={"child": name})
        await self._processes.stop(name)

    def _spawn(self, name: str, config: RankConfig) -> None:
        self._watched_since.pop(name, None)
        self._processes.spawn(
            ProcessRecord(
                name=name,
                role="rank",
                pid=0,
                start_ticks=0,
                socket=config.socket,
                deployment=config.deployment,
                generation=config.generation,
                rank_id=config.rank_id,
                device=config.device,
            ),
            ["-m", "agent.engine", str(self._paths.config(name))],
            environment=_environment(config.threads),
        )

    def _rank_config(
        self, order: StartRanks, rank: RankStart, held: HeldShard, draft: HeldShard | None
    ) -> RankConfig:
        name = process_name(order.deployment, order.generation, rank.rank_id)
        return RankConfig(
            cluster=self._config.cluster,
            host=self._config.host,
            deployment=order.deployment,
            generation=order.generation,
            rank_id=rank.rank_id,
            plan_hash=order.plan_hash,
            device=rank.device,
            cluster_address=self._config.cluster_address,
            socket=str(self._paths.socket(name)),
            agent_socket=str(self._paths.agent_socket),
            tls=tls_files(self._paths),
            model=order.spec,
            model_dir=held.model_dir,
            shard_file=held.shard_file,
            extent=rank.extent,
            tensor_index=rank.tensor_index,
            dtype=order.serving.dtype,
            context=order.serving.context,
            batch=order.serving.batch,
            prefill_chunk=order.serving.prefill_chunk,
            threads=self._config.threads,
            quantisation=order.serving.quantisation,
            is_exact=order.serving.exact,
            kv_blocks=order.serving.kv_blocks,
            cache_dir=str(self._paths.packed_shards),
            draft=(
                DraftConfig(model=order.draft_spec, model_dir=draft.model_dir, shard_file=draft.shard_file)
                if draft is not None and order.draft_spec is not None
                else None
            ),
        )


def _environment(threads: int) -> dict[str, str]:
    # NVML counts GPUs in PCI bus order; CUDA does so only when told, and `cuda:1` must mean one card to both.
    # Weights in huge pages stream a fifth faster through one core, and a killed rank is gone 20 times sooner: its
    # links close when its memory is freed. Torch asks for them only when told.
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "THP_MEM_ALLOC_ENABLE": "1"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def process_name(deployment: str, generation: int, rank_id: str) -> str:
    return f"{deployment}-{generation}-{rank_id}"


def tls_files(paths: HostPaths) -> TlsFiles:
    return TlsFiles(ca=str(paths.tls / "ca.pem"), cert=str(paths.tls / "host.pem"), key=str(paths.tls / "host.key"))


async def ask_rank(socket: str, request: RankRequest, *, timeout_s: float) -> RankStatus:
    """One request over a rank's unix socket. Raises OSError, TimeoutError."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(encode_frame(request))
            await writer.drain()
            status: RankStatus = decode(await read_frame(reader), RankStatus)
            return status
        finally:
            writer.close()
