"""All links of one rank under one generation: built together, counted together, taken down together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import torch

from agent.engine.links.carrier import Carrier, LinkCounter
from agent.engine.links.gloo import GlooCarrier
from agent.engine.links.group import ReduceGroup
from agent.engine.links.meeting import Meeting
from agent.engine.links.nccl import NcclCarrier
from agent.engine.links.pipeline import RECEIVER_INDEX, SENDER_INDEX, HiddenReceiver, HiddenSender, link_error
from agent.engine.links.stream import StreamCarrier
from agent.engine.store import AgentStore
from agent.errors import FleetError
from agent.planner.carriers import CarrierKind
from agent.planner.plan import Range
from agent.wire.rank import LinkRank, PipelineLink, TensorGroup, TlsFiles


@dataclass(frozen=True, kw_only=True)
class RankPosition:
    """What links need to know of the rank that they belong to."""

    rank_id: str
    deployment: str
    cluster_address: str
    agent_socket: str
    device: torch.device
    hidden_size: int
    kind: torch.dtype
    vocab: Range
    cluster: str
    host: str
    tls: TlsFiles
    step_port: int
    """Local port of the step channel: its connections are none of a link's."""


class Links:
    """Empty until `build`. `abort` may be called from any thread, also while `build` is under way."""

    def __init__(self) -> None:
        self.receiver: HiddenReceiver | None = None
        self.senders: tuple[HiddenSender, ...] = ()
        self.group: ReduceGroup | None = None
        self._carriers: list[Carrier] = []
        self._under_way: list[AgentStore | Meeting] = []
        self._lock = threading.Lock()
        self._is_aborted = False

    @property
    def is_aborted(self) -> bool:
        return self._is_aborted

    @property
    def counters(self) -> tuple[LinkCounter, ...]:
        parts = (self.receiver, *self.senders, self.group)
        return tuple(part.counter for part in parts if part is not None)

    def build(self, order: LinkRank, position: RankPosition, *, deadline: float) -> None:
        """Meet every other rank named in the order. Raises FleetError E802, with nothing left half built.

        Links are built in the order of their names on every rank, so that no two ranks wait for each other.
        """
        steps: dict[str, Callable[[], None]] = {}
        for link in order.sends_to:
            steps[link.name] = partial(self._build_sender, link, order, position, deadline)
        if order.receives_from is not None:
            steps[order.receives_from.name] = partial(
                self._build_receiver, order.receives_from, order, position, deadline
            )
        if order.group is not None and len(order.group.members) > 1:
            steps[order.group.name] = partial(self._build_group, order.group, order, position, deadline)
        try:
            for name in sorted(steps):
                steps[name]()
        except FleetError:
            self.close()
            raise

    def abort(self) -> None:
        with self._lock:
            self._is_aborted = True
            under_way, carriers = list(self._under_way), list(self._carriers)
        for wait in under_way:
            wait.abort()
        for carrier in carriers:
            carrier.abort()

    def close(self) -> None:
        """Abort and release; counters stay readable. Only the engine thread may call it."""
        self.abort()
        with self._lock:
            carriers, self._carriers = self._carriers, []
        for part in (self.receiver, *self.senders, self.group):
            if part is not None:
                part.close()
        for carrier in carriers:
            carrier.close()

    def _build_sender(self, link: PipelineLink, order: LinkRank, position: RankPosition, deadline: float) -> None:
        carrier = self._meet(link, link.other_rank, order, position, index=SENDER_INDEX, size=2, deadline=deadline)
        self.senders += (HiddenSender(carrier, name=link.name, other_rank=link.other_rank),)

    def _build_receiver(self, link: PipelineLink, order: LinkRank, position: RankPosition, deadline: float) -> None:
        carrier = self._meet(
            link, link.other_rank, order, position, index=RECEIVER_INDEX, size=2, deadline=deadline
        )
        self.receiver = HiddenReceiver(
            carrier,
            name=link.name,
            other_rank=link.other_rank,
            hidden_size=position.hidden_size,
            kind=position.kind,
        )

    def _build_group(self, group: TensorGroup, order: LinkRank, position: RankPosition, deadline: float) -> None:
        index = group.members.index(position.rank_id)
        others = ", ".join(member for member in group.members if member != position.rank_id)
        size = len(group.members)
        carrier = self._meet(group, others, order, position, index=index, size=size, deadline=deadline)
        self.group = ReduceGroup(
            carrier,
            name=group.name,
            members=group.members,
            index=index,
            vocab=position.vocab,
            device=position.device,
        )

    def _meet(
        self,
        link: PipelineLink | TensorGroup,
        others: str,
        order: LinkRank,
        position: RankPosition,
        *,
        index: int,
        size: int,
        deadline: float,
    ) -> Carrier:
        store = AgentStore(
            agent_socket=position.agent_socket,
            controller=order.controller,
            prefix=f"{position.deployment}/{order.generation}/{link.name}",
            deadline=deadline,
        )
        self._abort_with(store, link.name)
        try:
            carrier = self._make_carrier(link.carrier, store, position, index=index, size=size, deadline=deadline)
        except RuntimeError as error:
            raise link_error(link.name, others, error) from error
        with self._lock:
            self._under_way.clear()
            self._carriers.append(carrier)
            is_aborted = self._is_aborted
        if is_aborted:
            raise FleetError("E802", f"linking was aborted after {link.name}")
        return carrier

    def _make_carrier(
        self,
        kind: CarrierKind,
        store: AgentStore,
        position: RankPosition,
        *,
        index: int,
        size: int,
        deadline: float,
    ) -> Carrier:
        timeout_s = max(deadline - time.monotonic(), 0.1)
        match kind:
            case "nccl":
                return NcclCarrier(store=store, index=index, size=size, timeout_s=timeout_s, device=position.device)
            case "gloo":
                return GlooCarrier(
                    store=store,
                    index=index,
                    size=size,
                    address=position.cluster_address,
                    timeout_s=timeout_s,
                    device=position.device,
                    except_port=position.step_port,
                )
            case "tls" | "tcp" | "unix":
                meeting = Meeting(
                    store=store,
                    index=index,
                    size=size,
                    kind=kind,
                    address=position.cluster_address,
                    cluster=position.cluster,
                    host=position.host,
                    tls=position.tls,
                    deadline=deadline,
                )
                self._abort_with(meeting, store.prefix)
                return StreamCarrier(meeting.meet(), index=index, size=size, device=position.device)
            case _:
                assert_never(kind)

    def _abort_with(self, wait: AgentStore | Meeting, name: str) -> None:
        with self._lock:
            if self._is_aborted:
                raise FleetError("E802", f"linking was aborted before {name}")
            self._under_way.append(wait)
