"""The engine thread: load the shard, then links and steps in the order of the inbox, until it is closed."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from agent.engine.batch import Batch, lay_out
from agent.engine.decoder import Decoder, Reduce
from agent.engine.drafter import Drafter, draft_cache_bytes, draft_weight_bytes, load_drafter
from agent.engine.graphs import Record, StepGraphs, cuda_recorder
from agent.engine.inbox import Inbox, LinkOrder, StepOrder
from agent.engine.kv_cache import KvCache
from agent.engine.links.build import Links, RankPosition
from agent.engine.memory import check_memory, keep_freed_memory
from agent.engine.sampling import Sampler
from agent.engine.shard_cache import ShardCache
from agent.engine.status_board import StatusBoard
from agent.engine.step_check import check_step
from agent.engine.weights import load_weights
from agent.errors import FleetError
from agent.facts.model import DTYPE_BYTES
from agent.planner.plan import BLOCK_TOKENS
from agent.planner.shards import shard_weight_bytes
from agent.wire.rank import EmbeddedSlice, LinkRank, RankConfig, SampledToken, Step, StepDone, StepFailed

log = logging.getLogger(__name__)

KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Executor:
    """`run` belongs to the engine thread; `abort_links` may be called from any."""

    def __init__(
        self,
        config: RankConfig,
        board: StatusBoard,
        inbox: Inbox,
        *,
        sampler: Sampler | None = None,
        record: Record | None = None,
    ) -> None:
        self._config = config
        self._board = board
        self._inbox = inbox
        self._kind = KINDS[config.dtype]
        self._device = torch.device(config.device)
        self._links: Links | None = None
        self._is_linked = False
        self._links_lock = threading.Lock()
        self._sampler = sampler or Sampler(config.batch)
        self._record = record
        self._graphs: StepGraphs | None = None
        self._drafter: Drafter | None = None

    def run(self) -> None:
        """Returns when the inbox is closed, or at once in state `failed` when the shard cannot be loaded."""
        try:
            with torch.inference_mode():
                self._load()
        except FleetError as error:
            self._board.error = error.detail
            self._board.state = "failed"
            self._inbox.close()
            log.error("rank cannot load", extra={"rank": self._config.rank_id, "error": str(error)})
            return
        self._board.state = "loaded"
        with torch.inference_mode():
            while (order := self._inbox.take()) is not None:
                if isinstance(order, LinkOrder):
                    self._relink(order)
                else:
                    self._execute(order)
        self._drop_links()

    def abort_links(self) -> None:
        """Unblock the engine thread wherever it waits for another rank, while linking too."""
        with self._links_lock:
            links = self._links
        if links is not None:
            links.abort()

    # --- loading --------------------------------------------------------------------------------------

    def _load(self) -> None:
        config, board = self._config, self._board
        if config.threads > 0:
            torch.set_num_threads(config.threads)
        kv_bytes = kv_cache_bytes(config)
        weight_bytes = shard_weight_bytes(config.model, config.extent, config.dtype, config.quantisation)
        weight_bytes += draft_weight_bytes(config)

        def on_read(count: int) -> None:
            board.read_bytes += count
            stored_bytes = weight_bytes * DTYPE_BYTES[config.model.dtype] // DTYPE_BYTES[config.dtype]
            board.loaded_fraction = min(1.0, board.read_bytes / max(stored_bytes, 1))

        try:
            check_memory(self._device, weight_bytes + kv_bytes)
            weights = load_weights(
                config.model,
                config.extent,
                shard_file=config.shard_file,
                model_dir=config.model_dir,
                kind=self._kind,
                device=self._device,
                on_read=on_read,
                quantisation=config.quantisation,
                is_exact=config.is_exact,
                cache=ShardCache(Path(config.cache_dir)) if config.cache_dir else None,
            )
            self._decoder = Decoder(
                config.model,
                config.extent,
                weights,
                context=config.context,
                kind=self._kind,
                device=self._device,
                on_layer=board.bump_progress,
                is_exact=config.is_exact,
            )
            self._cache = KvCache(
                num_layers=config.extent.layers[1] - config.extent.layers[0],
                batch=config.batch,
                context=config.context,
                num_blocks=kv_blocks(config),
                num_kv_heads=config.extent.kv_heads[1] - config.extent.kv_heads[0],
                head_size=config.model.head_size,
                kind=self._kind,
                device=self._device,
                is_exact=config.is_exact,
            )
            self._prepare_graphs()
            if config.draft is not None:
                self._drafter = load_drafter(
                    config,
                    self._sampler,
                    num_blocks=kv_blocks(config),
                    kind=self._kind,
                    device=self._device,
                    record=self._record,
                    on_read=on_read,
                    on_layer=board.bump_progress,
                )
        except (RuntimeError, MemoryError) as error:
            raise _kernel_error(error, f"loading {weight_bytes + kv_bytes} bytes onto {self._device}") from error
        keep_freed_memory()
        board.weight_bytes = weights.num_bytes
        board.kv_cache_bytes = self._cache.num_bytes
        if self._drafter is not None:
            board.weight_bytes += self._drafter.weight_bytes
            board.kv_cache_bytes += self._drafter.kv_cache_bytes
        board.loaded_fraction = 1.0

    def _prepare_graphs(self) -> None:
        """Not where the host decides what is run: query by query in exact mode, and which experts a step needs."""
        config = self._config
        if self._record is None and self._device.type == "cuda":
            self._record = cuda_recorder(self._device)
        if self._record is not None and not config.is_exact and not config.model.num_experts:
            self._graphs = StepGraphs(
                self._decoder,
                self._cache,
                hidden_size=config.model.hidden_size,
                kind=self._kind,
                device=self._device,
                record=self._record,
            )

    # --- links ----------------------------------------------------------------------------------------

    def _relink(self, order: LinkOrder) -> None:
        self._drop_links()
        self._board.error = None
        if order.request is not None:
            self._board.generation = order.request.generation
            try:
                self._build_links(order.request, order.deadline)
            except FleetError as error:
                self._drop_links()
                self._board.error = error.detail
        order.on_done()

    def _build_links(self, request: LinkRank, deadline: float) -> None:
        config = self._config
        _check_links(config, request)
        links = Links()
        with self._links_lock:
            self._links = links
        links.build(
            request,
            RankPosition(
                rank_id=config.rank_id,
                deployment=config.deployment,
                cluster_address=config.cluster_address,
                agent_socket=config.agent_socket,
                device=self._device,
                hidden_size=config.model.hidden_size,
                kind=self._kind,
                vocab=config.extent.vocab,
                cluster=config.cluster,
                host=config.host,
                tls=config.tls,
                step_port=self._board.step_port,
            ),
            deadline=deadline,
        )
        self._board.counters = links.counters
        self._is_linked = True
        self._board.state = "linked"

    def _drop_links(self) -> None:
        """Back to `loaded`: no links, and no sequence that they served."""
        self._is_linked = False
        if self._board.state == "linked":
            self._board.state = "loaded"
        with self._links_lock:
            links, self._links = self._links, None
        if links is not None:
            links.close()
        self._cache.forget()
        self._sampler.forget()
        if self._drafter is not None:
            self._drafter.forget()

    # --- steps ----------------------------------------------------------------------------------------

    def _execute(self, order: StepOrder) -> None:
        links = self._links
        if not self._is_linked or links is None:
            return  # this generation has failed and the gateway was told so
        begun, waited = time.perf_counter(), _wait_s(links)
        try:
            done = self._run_step(order, links)
        except FleetError as error:
            self._fail(order, error)
            return
        except (RuntimeError, MemoryError) as error:
            self._fail(order, _kernel_error(error, f"step {order.step.step_id}"))
            return
        if done is not None:
            order.replies.post(done)
        if self._drafter is not None:
            self._drafter.follow(order.step.slices)
        board = self._board
        board.busy_s += time.perf_counter() - begun - (_wait_s(links) - waited)
        board.steps += 1
        board.tokens += sum(len(piece.tokens) for piece in order.step.slices)

    def _run_step(self, order: StepOrder, links: Links) -> StepDone | None:
        config, step = self._config, order.step
        check_step(step, self._cache, vocab_size=config.model.vocab_size)
        key = (step.step_id, order.checksum)
        reduce = _unreduced
        if links.group is not None:
            links.group.agree_on(key)
            reduce = links.group.all_reduce
        self._cache.admit(step.slices)
        batch = lay_out(step, self._cache.tables, kind=self._kind, device=self._device)
        if links.receiver is None:
            hidden_TD = self._decoder.embed(batch.tokens, reduce)
        else:
            hidden_TD = links.receiver.receive(key, batch.num_tokens)
        hidden_TD = self._run_layers(hidden_TD, batch, reduce, links)
        for span in batch.spans:
            self._cache.lengths[span.slot] = span.end
        for sender in links.senders:
            sender.send(key, hidden_TD)
        if not config.extent.is_last_stage:
            return None
        tokens = self._sample(order, batch, hidden_TD, links)
        if config.tensor_index != 0:
            return None
        guesses: list[list[int]] = []
        if self._drafter is not None:
            self._drafter.admit(step.slices)
            guesses = self._drafter.guess(step.slices, tokens)
        embeddings = self._embed(step, batch, hidden_TD)
        return StepDone(step_id=step.step_id, tokens=tokens, embeddings=embeddings, guesses=guesses)

    def _run_layers(self, hidden_TD: Tensor, batch: Batch, reduce: Reduce, links: Links) -> Tensor:
        """By graph where there is one: sums over a group wait for other ranks, which no graph can."""
        if self._graphs is not None and links.group is None and self._graphs.takes(batch):
            result_TD = self._graphs.run_layers(hidden_TD, batch)
            if result_TD is not None:
                self._board.bump_progress()
                return result_TD
        return self._decoder.run_layers(hidden_TD, batch, self._cache, reduce)

    def _sample(self, order: StepOrder, batch: Batch, hidden_TD: Tensor, links: Links) -> list[SampledToken]:
        is_leader = self._config.tensor_index == 0
        if is_leader:
            self._sampler.extend(order.step.slices)
        rows = batch.sampling_rows
        if not rows:
            return []
        hidden_RD = hidden_TD if len(rows) == batch.num_tokens else hidden_TD[list(rows)]
        logits_RV: Tensor | None = self._decoder.logits(hidden_RD)
        if links.group is not None:
            assert logits_RV is not None
            logits_RV = links.group.gather_logits(logits_RV)
        if not is_leader:
            return []
        assert logits_RV is not None
        return self._sampler.sample([piece for piece in order.step.slices if piece.samples], logits_RV)

    def _embed(self, step: Step, batch: Batch, hidden_TD: Tensor) -> list[EmbeddedSlice]:
        """Every member of a stage holds the whole hidden state: the reductions are behind it."""
        slots, rows = [], []
        for piece, span in zip(step.slices, batch.spans, strict=True):
            if piece.embeds:
                slots.append(piece.slot)
                rows.append(span.row_end - 1)
        if not rows:
            return []
        values_RD = self._decoder.normalise(hidden_TD[rows]).to(device="cpu", dtype=torch.float32).numpy()
        return [
            EmbeddedSlice(slot=slot, values=values_D.astype("<f4").tobytes())
            for slot, values_D in zip(slots, values_RD, strict=True)
        ]

    def _fail(self, order: StepOrder, error: FleetError) -> None:
        """This generation is over for this rank: tell the gateway, take the links down, stay for the next one."""
        detail = error.detail
        log.error(
            "step failed",
            extra={"rank": self._config.rank_id, "step": order.step.step_id, "error": str(error)},
        )
        self._drop_links()
        self._board.error = detail
        order.replies.post(StepFailed(step_id=order.step.step_id, error=detail))


def kv_blocks(config: RankConfig) -> int:
    """Blocks of the KV cache of each layer: as many as the plan says, or every slot at its full context."""
    return config.kv_blocks or config.batch * -(-config.context // BLOCK_TOKENS)


def kv_cache_bytes(config: RankConfig) -> int:
    """2 x layers x blocks x positions of a block x KV heads x head size x bytes of the dtype, and the draft's."""
    layers = config.extent.layers[1] - config.extent.layers[0]
    kv_heads = config.extent.kv_heads[1] - config.extent.kv_heads[0]
    positions = kv_blocks(config) * BLOCK_TOKENS
    own = 2 * layers * positions * kv_heads * config.model.head_size * DTYPE_BYTES[config.dtype]
    return own + draft_cache_bytes(config, kv_blocks(config))


def _unreduced(partial: Tensor) -> Tensor:
    return partial


def _wait_s(links: Links) -> float:
    return sum(counter.wait_s for counter in links.counters)


def _check_links(config: RankConfig, request: LinkRank) -> None:
    """Refuse links that do not fit the shard: a step would run on half of what it needs."""
    extent, spec = config.extent, config.model
    is_partial = extent.heads != (0, spec.num_heads) or extent.columns != (0, spec.mlp_columns)
    group_size = len(request.group.members) if request.group is not None else 1
    problem = ""
    if (request.receives_from is None) != extent.is_first_stage:
        problem = "the first stage receives from nobody, every other one from the stage before"
    elif extent.is_last_stage and request.sends_to:
        problem = "the last stage sends to nobody"
    elif is_partial and group_size == 1:
        problem = "a shard with part of the heads or columns needs its tensor-parallel group"
    elif request.group is not None and config.rank_id not in request.group.members:
        problem = f"it is not a member of its group {request.group.name}"
    elif request.group is not None and request.group.members.index(config.rank_id) != config.tensor_index:
        problem = f"its place in group {request.group.name} is not its tensor index {config.tensor_index}"
    if problem:
        raise FleetError("E802", f"rank {config.rank_id} cannot link: {problem}", host=config.host)


def _kernel_error(error: Exception, doing: str) -> FleetError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    if is_memory:
        return FleetError(
            "E804", f"out of memory while {doing}: {text}", hint="plan with a smaller batch or context"
        )
    log.error("kernel failed", exc_info=error)
    return FleetError("E807", f"{doing} failed: {text}")
