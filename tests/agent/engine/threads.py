"""Ranks as threads of this process, over real links: the wide matrix without a process start per case."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

import torch
from torch import Tensor

from agent.engine.executor import Executor
from agent.engine.executor import kv_blocks as blocks_of
from agent.engine.graphs import Record
from agent.engine.inbox import Inbox, LinkOrder, StepOrder
from agent.engine.sampling import Sampler
from agent.engine.status_board import StatusBoard
from agent.facts.model import Dtype, ModelSpec
from agent.planner.carriers import CarrierKind
from agent.planner.shards import ShardExtent
from agent.wire.rank import (
    DraftConfig,
    LinkRank,
    PipelineLink,
    RankConfig,
    SampledToken,
    SamplingParams,
    SequenceSlice,
    Step,
    StepDone,
    StepFailed,
    TensorGroup,
    TlsFiles,
)
from tests.agent.engine.blocks import Blocks
from tests.agent.engine.certificates import Authority
from tests.agent.engine.rendezvous import serve_rendezvous

Stages = Sequence[Sequence[ShardExtent]]
DEADLINE_S = 30.0


def rank_name(stage: int, tensor_index: int) -> str:
    return f"r0s{stage}t{tensor_index}"


def plan_links(
    stages: Stages, *, generation: int, timeout_s: float = 10.0, carrier: CarrierKind = "tls"
) -> dict[str, LinkRank]:
    """Links of every rank: rank (j mod its stage's size) of the stage before sends to rank j."""
    links: dict[str, LinkRank] = {}
    for stage, shards in enumerate(stages):
        for index in range(len(shards)):
            receives = None
            if stage > 0:
                receives = _link(stage - 1, index % len(stages[stage - 1]), stage, index, carrier, is_sender=False)
            sends = tuple(
                _link(stage, index, stage + 1, other, carrier, is_sender=True)
                for other in range(len(stages[stage + 1]) if stage + 1 < len(stages) else 0)
                if other % len(shards) == index
            )
            members = tuple(rank_name(stage, member) for member in range(len(shards)))
            group = TensorGroup(name=f"r0s{stage}", members=members, carrier=carrier) if len(shards) > 1 else None
            links[rank_name(stage, index)] = LinkRank(
                generation=generation,
                receives_from=receives,
                sends_to=sends,
                group=group,
                timeout_s=timeout_s,
                controller="host01",
            )
    return links


def _link(
    stage: int, index: int, other_stage: int, other: int, carrier: CarrierKind, *, is_sender: bool
) -> PipelineLink:
    source, target = rank_name(stage, index), rank_name(other_stage, other)
    return PipelineLink(name=f"{source}>{target}", other_rank=target if is_sender else source, carrier=carrier)


def rank_config(
    spec: ModelSpec,
    extent: ShardExtent,
    *,
    folder: Path,
    model_dir: Path,
    stage: int = 0,
    tensor_index: int = 0,
    shard_file: str = "",
    dtype: Dtype = "float32",
    context: int = 128,
    batch: int = 4,
    kv_blocks: int = 0,
    is_exact: bool = False,
    draft: DraftConfig | None = None,
) -> RankConfig:
    rank_id = rank_name(stage, tensor_index)
    return RankConfig(
        cluster="lab",
        host="host01",
        deployment="chat",
        generation=1,
        rank_id=rank_id,
        plan_hash="plan",
        device="cpu",
        cluster_address="127.0.0.1",
        socket=str(folder / f"{rank_id}.sock"),
        agent_socket=str(folder / "agent.sock"),
        tls=TlsFiles(ca=str(folder / "ca.pem"), cert=str(folder / "leaf.pem"), key=str(folder / "leaf.key")),
        model=spec,
        model_dir=str(model_dir),
        shard_file=shard_file,
        extent=extent,
        tensor_index=tensor_index,
        dtype=dtype,
        context=context,
        batch=batch,
        prefill_chunk=32,
        threads=1,
        kv_blocks=kv_blocks,
        is_exact=is_exact,
        draft=draft,
    )


class RecordingSampler(Sampler):
    """Samples as ever, and keeps the logits that it was given, in float32."""

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.seen: list[tuple[SequenceSlice, Tensor]] = []

    def sample(self, slices: list[SequenceSlice], logits_RV: Tensor) -> list[SampledToken]:
        rows = [piece for piece in slices for _ in range(piece.drafts + 1)]
        self.seen.extend(zip(rows, logits_RV.float().clone(), strict=True))
        return super().sample(slices, logits_RV)


class Answers:
    """Collects what ranks would tell their gateway."""

    def __init__(self) -> None:
        self.queue: Queue[StepDone | StepFailed] = Queue()

    def post(self, message: StepDone | StepFailed) -> None:
        self.queue.put(message)

    def next(self) -> StepDone:
        try:
            message = self.queue.get(timeout=DEADLINE_S)
        except Empty:
            raise AssertionError("no step came back") from None
        assert isinstance(message, StepDone), message
        return message


class ThreadReplica:
    """One replica whose ranks are threads. Steps go to all of them, as a gateway would send them."""

    def __init__(self, configs: Sequence[RankConfig], *, record: Record | None = None) -> None:
        self.configs = configs
        self.blocks = Blocks(blocks_of(configs[0]))
        self.answers = Answers()
        self.sampler = RecordingSampler(configs[0].batch)
        self.boards: dict[str, StatusBoard] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._threads: list[threading.Thread] = []
        self._next_step = 1
        for config in configs:
            inbox = Inbox(on_room=lambda: None)
            board = StatusBoard(config, count_queued=inbox.__len__)
            is_leader = config.extent.is_last_stage and config.tensor_index == 0
            executor = Executor(config, board, inbox, sampler=self.sampler if is_leader else None, record=record)
            thread = threading.Thread(target=executor.run, name=config.rank_id, daemon=True)
            thread.start()
            self._inboxes[config.rank_id] = inbox
            self.boards[config.rank_id] = board
            self._threads.append(thread)

    def link(self, links: dict[str, LinkRank]) -> None:
        done = threading.Semaphore(0)
        for rank_id, request in links.items():
            deadline = time.monotonic() + request.timeout_s
            self._inboxes[rank_id].put_link(LinkOrder(request=request, deadline=deadline, on_done=done.release))
        for _ in links:
            assert done.acquire(timeout=DEADLINE_S)
        for board in self.boards.values():
            assert board.state == "linked", board.error

    def put(self, slices: list[SequenceSlice]) -> None:
        step = Step(step_id=self._next_step, slices=[self.blocks.fill(piece) for piece in slices])
        self._next_step += 1
        self.put_step(step)

    def put_step(self, step: Step) -> None:
        """A step that names its blocks itself, as a scheduler's does."""
        for inbox in self._inboxes.values():
            assert inbox.put_step(StepOrder(step=step, checksum=0, replies=self.answers))

    def step(self, slices: list[SequenceSlice]) -> list[SampledToken]:
        self.put(slices)
        return self.answers.next().tokens

    def logits(self, tokens: list[int], chunks: Sequence[int], *, slot: int = 0) -> Tensor:
        """Logits after the last token of each chunk of one sequence, chunks x vocabulary."""
        assert sum(chunks) == len(tokens)
        self.sampler.seen.clear()
        start = 0
        for size in chunks:
            self.step([SequenceSlice(slot=slot, start=start, tokens=tokens[start : start + size], samples=True)])
            start += size
        return torch.stack([logits for _, logits in self.sampler.seen])

    def generate(
        self, prompts: dict[int, list[int]], count: int, *, chunk: int = 16, params: SamplingParams | None = None
    ) -> dict[int, list[int]]:
        """Decode `count` tokens for the prompt of each slot, prefill chunks and decodes mixed in one step."""
        fed = dict.fromkeys(prompts, 0)
        made: dict[int, list[int]] = {slot: [] for slot in prompts}
        while any(len(tokens) < count for tokens in made.values()):
            slices = []
            for slot, prompt in prompts.items():
                if len(made[slot]) == count:
                    continue
                sequence = prompt + made[slot]
                end = min(fed[slot] + chunk, len(sequence))
                slices.append(
                    SequenceSlice(
                        slot=slot,
                        start=fed[slot],
                        tokens=sequence[fed[slot] : end],
                        samples=end == len(sequence),
                        params=params if fed[slot] == 0 else None,
                    )
                )
                fed[slot] = end
            for sampled in self.step(slices):
                assert sampled.position == len(prompts[sampled.slot]) + len(made[sampled.slot])
                made[sampled.slot].append(sampled.token)
        return made

    def close(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@contextmanager
def run_threads(
    spec: ModelSpec,
    stages: Stages,
    *,
    model_dir: Path,
    folder: Path,
    dtype: Dtype = "float32",
    batch: int = 4,
    context: int = 128,
    kv_blocks: int = 0,
    is_exact: bool = False,
    record: Record | None = None,
    shard_files: Sequence[str] = (),
    carrier: CarrierKind = "tls",
    draft: tuple[ModelSpec, Path] | None = None,
) -> Iterator[ThreadReplica]:
    configs = [
        rank_config(
            spec,
            extent,
            folder=folder,
            model_dir=model_dir,
            stage=stage,
            tensor_index=index,
            dtype=dtype,
            batch=batch,
            context=context,
            kv_blocks=kv_blocks,
            is_exact=is_exact,
            shard_file=shard_files[index] if shard_files else "",
            draft=(
                DraftConfig(model=draft[0], model_dir=str(draft[1]), shard_file="")
                if draft is not None and extent.is_last_stage and index == 0
                else None
            ),
        )
        for stage, shards in enumerate(stages)
        for index, extent in enumerate(shards)
    ]
    Authority(folder).leaf("leaf")
    with serve_rendezvous(folder / "agent.sock"):
        replica = ThreadReplica(configs, record=record)
        replica.blocks = Blocks(blocks_of(configs[0]), is_scattered=True)
        try:
            replica.link(plan_links(stages, generation=1, carrier=carrier))
            yield replica
        finally:
            replica.close()
