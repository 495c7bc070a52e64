"""A stage's tensor-parallel group: sums of partial results, and logits gathered on its leader."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.engine.links.carrier import Carrier, LinkCounter
from agent.engine.links.pipeline import StepKey, link_error
from agent.errors import FleetError
from agent.planner.plan import Range

LEADER_INDEX = 0


class ReduceGroup:
    """Members in order, this rank at `index`. `vocab` is this rank's share of the vocabulary."""

    def __init__(
        self,
        carrier: Carrier,
        *,
        name: str,
        members: tuple[str, ...],
        index: int,
        vocab: Range,
        device: torch.device,
    ) -> None:
        self.counter = LinkCounter(name, carrier)
        self.carrier = carrier
        self.is_leader = index == LEADER_INDEX
        self._members = members
        self._index = index
        self._device = device
        self._vocabs = self._exchange_vocabs(vocab)

    def all_reduce(self, partial: Tensor) -> Tensor:
        """The sum over the group, added up in float32 and rounded once to the partial's dtype."""
        try:
            with self.counter.waiting():
                total = self.carrier.all_reduce(partial)
        except RuntimeError as error:
            raise self._broke(error) from error
        self.counter.sent_bytes += total.nbytes
        self.counter.received_bytes += total.nbytes
        return total

    def agree_on(self, key: StepKey) -> None:
        """Raise E802 on the leader unless every member is about to execute this very step."""
        for index, said in self._gather(torch.tensor(key, dtype=torch.int64, device=self._device)):
            if said.tolist() != list(key):
                raise FleetError(
                    "E802",
                    f"group {self.counter.name}: {self._members[index]} executes step {int(said[0])}, "
                    f"{self._members[self._index]} step {key[0]}",
                    hint="the gateway did not reach every rank; the ranks must be linked again",
                )

    def gather_logits(self, logits_RV: Tensor) -> Tensor | None:
        """All columns of the logits in order of the vocabulary, on the leader; None elsewhere."""
        gathered = self._gather(logits_RV, self._vocabs)
        if not self.is_leader:
            return None
        size = max(end for _, end in self._vocabs)
        full_RV = logits_RV.new_empty((logits_RV.shape[0], size))
        for index, columns in ((self._index, logits_RV), *gathered):
            begin, end = self._vocabs[index]
            full_RV[:, begin:end] = columns
        return full_RV

    def close(self) -> None:
        self.carrier.close()

    def _gather(self, tensor: Tensor, columns: tuple[Range, ...] | None = None) -> list[tuple[int, Tensor]]:
        """(member, its tensor) on the leader, in order; nothing elsewhere. `columns`: each one's last dimension."""
        try:
            with self.counter.waiting():
                if not self.is_leader:
                    self.carrier.send(tensor, LEADER_INDEX).wait()
                    self.counter.sent_bytes += tensor.nbytes
                    return []
                received = []
                for index in range(1, len(self._members)):
                    width = columns[index][1] - columns[index][0] if columns else tensor.shape[-1]
                    shape = (*tensor.shape[:-1], width)
                    received.append((index, self.carrier.receive(shape, tensor.dtype, index)))
                    self.counter.received_bytes += received[-1][1].nbytes
                return received
        except RuntimeError as error:
            raise self._broke(error) from error

    def _exchange_vocabs(self, vocab: Range) -> tuple[Range, ...]:
        own = torch.tensor(vocab, dtype=torch.int64, device=self._device)
        vocabs = [vocab] * len(self._members)
        for index, other in self._gather(own):
            vocabs[index] = (int(other[0]), int(other[1]))
        return tuple(vocabs)

    def _broke(self, error: Exception) -> FleetError:
        others = ", ".join(member for index, member in enumerate(self._members) if index != self._index)
        return link_error(self.counter.name, others, error)
