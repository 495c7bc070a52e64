"""What a member does for a controller: one instruction, one function. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.planner.shards import whole_extent
from agent.supervisor.gateways import GatewayTable
from agent.supervisor.members import MemberTable
from agent.supervisor.ranks import HeldShard, RankTable
from agent.supervisor.weights import WeightStore
from agent.wire.agent import (
    AskGateway,
    AskRanks,
    Attach,
    Commit,
    DeploymentRecord,
    EndRequest,
    EnsureGateway,
    FetchShards,
    Forget,
    Instruction,
    InstructionReply,
    LinkRanks,
    ListRequests,
    Prepare,
    Release,
    RestartRank,
    RetireBackends,
    StartRanks,
    StopRanks,
    TellGateway,
    UnlinkRanks,
)


class Member:
    def __init__(
        self,
        *,
        ranks: RankTable,
        gateways: GatewayTable,
        members: MemberTable,
        weights: WeightStore,
        on_fenced: Callable[[DeploymentRecord], None],
        on_forgotten: Callable[[str], None],
    ) -> None:
        self._ranks = ranks
        self._gateways = gateways
        self._members = members
        self._weights = weights
        self._on_fenced = on_fenced
        self._on_forgotten = on_forgotten

    async def perform(self, instruction: Instruction) -> InstructionReply:
        """Raises FleetError naming this host when it cannot be done."""
        match instruction:
            case Prepare():
                self._members.prepare(instruction)
            case Release():
                self._members.release(instruction)
            case Commit():
                self._members.commit(instruction)
                self._on_fenced(instruction.record)
            case FetchShards():
                return InstructionReply(fetched_bytes=await self._weights.fetch(instruction))
            case StartRanks() | RestartRank() | StopRanks() | AskRanks() | LinkRanks() | UnlinkRanks():
                return await self._perform_on_ranks(instruction)
            case EnsureGateway() | Attach() | TellGateway() | AskGateway() | RetireBackends():
                return await self._perform_on_gateway(instruction)
            case ListRequests(listen=listen, deployment=deployment):
                report = await self._gateways.requests(listen, deployment)
                return InstructionReply(requests=report.requests)
            case EndRequest(listen=listen, cancel=cancel):
                return InstructionReply(requests=(await self._gateways.end_request(listen, cancel),))
            case Forget(deployment=deployment):
                if self._members.stands_at(deployment, instruction.before_generation):
                    return InstructionReply()
                self._on_forgotten(deployment)
                await self._gateways.retire(deployment, before_generation=None, drain_s=0.0)
                await self._ranks.stop(deployment, ())
                self._members.forget(deployment)
        return InstructionReply()

    async def _perform_on_ranks(
        self, instruction: StartRanks | RestartRank | StopRanks | AskRanks | LinkRanks | UnlinkRanks
    ) -> InstructionReply:
        match instruction:
            case StartRanks():
                await self._start_ranks(instruction)
            case RestartRank(deployment=deployment, generation=generation, rank_id=rank_id):
                self._ranks.restart(deployment, generation, rank_id)
            case StopRanks(deployment=deployment, keep_generations=kept):
                await self._ranks.stop(deployment, kept)
            case AskRanks(deployment=deployment, generation=generation):
                statuses = await self._ranks.ask_all(deployment, generation or None)
                dead = tuple(
                    rank
                    for rank in self._ranks.dead.values()
                    if rank.deployment == deployment and generation in (0, rank.generation)
                )
                return InstructionReply(ranks=statuses, dead_ranks=dead)
            case LinkRanks(deployment=deployment, links=links, from_generation=spawned):
                generation = spawned or next(iter(links.values())).generation
                return InstructionReply(ranks=await self._ranks.link(deployment, generation, links))
            case UnlinkRanks(deployment=deployment, rank_ids=rank_ids, from_generation=spawned):
                await self._ranks.unlink(deployment, spawned, rank_ids)
        return InstructionReply()

    async def _start_ranks(self, order: StartRanks) -> None:
        extents = {rank.rank_id: rank.extent for rank in order.ranks}
        shards = await self._weights.held(order.model, order.spec, extents)
        drafts: dict[str, HeldShard] = {}
        if order.draft is not None and order.draft_spec is not None:
            whole = whole_extent(order.draft_spec)
            drafting = {rank.rank_id: whole for rank in order.ranks if rank.has_draft}
            drafts = await self._weights.held(order.draft, order.draft_spec, drafting)
        self._ranks.start(order, shards, drafts)

    async def _perform_on_gateway(
        self, instruction: EnsureGateway | Attach | TellGateway | AskGateway | RetireBackends
    ) -> InstructionReply:
        match instruction:
            case EnsureGateway(listen=listen):
                return InstructionReply(socket=await self._gateways.ensure(listen))
            case Attach(listen=listen, backend=backend, model=model):
                model_dir = str(await self._weights.tokenizer_dir(model))
                await self._gateways.attach(listen, msgspec.structs.replace(backend, model_dir=model_dir))
            case TellGateway():
                checked = await self._gateways.tell(instruction)
                if instruction.verb in ("detach", "retire"):
                    await self._gateways.stop_if_idle(instruction.listen)
                return InstructionReply(checked=checked)
            case AskGateway(listen=listen):
                return InstructionReply(backends=await self._gateways.ask(listen))
            case RetireBackends(deployment=deployment, generation=generation, drain_s=drain_s):
                await self._gateways.retire(deployment, before_generation=generation, drain_s=drain_s)
        return InstructionReply()
