"""Hidden states along one directed link. Each travels behind a header that says which step it belongs to.

Two ends that hold different steps (a gateway died between telling one rank and the next) fail loudly, instead of
running one step's tokens against another's hidden states.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from agent.engine.links.carrier import Carrier, LinkCounter, Pending
from agent.errors import FleetError

MAX_OUTSTANDING_SENDS = 16
"""Messages that may be under way; two make one step's. Further sends wait for the oldest."""
SENDER_INDEX, RECEIVER_INDEX = 0, 1

StepKey = tuple[int, int]
"""A step's id, and a checksum of what it holds."""


class HiddenSender:
    def __init__(self, carrier: Carrier, *, name: str, other_rank: str) -> None:
        self.counter = LinkCounter(name, carrier)
        self.carrier = carrier
        self._other_rank = other_rank
        self._outstanding: deque[Pending] = deque()

    def send(self, key: StepKey, hidden_TD: Tensor) -> None:
        """Pass a step's hidden states on without waiting for the other rank to take them.

        Raises FleetError E802 when the link is broken.
        """
        header = torch.tensor([*key, hidden_TD.shape[0]], dtype=torch.int64)
        try:
            self._outstanding.append(self.carrier.send(header, RECEIVER_INDEX, is_followed=True))
            self._outstanding.append(self.carrier.send(hidden_TD, RECEIVER_INDEX))
            self.counter.sent_bytes += header.nbytes + hidden_TD.nbytes
            with self.counter.waiting():
                while len(self._outstanding) > MAX_OUTSTANDING_SENDS:
                    self._outstanding.popleft().wait()
        except RuntimeError as error:
            raise link_error(self.counter.name, self._other_rank, error) from error

    def close(self) -> None:
        self.carrier.close()
        self._outstanding.clear()


class HiddenReceiver:
    def __init__(
        self, carrier: Carrier, *, name: str, other_rank: str, hidden_size: int, kind: torch.dtype
    ) -> None:
        self.counter = LinkCounter(name, carrier)
        self.carrier = carrier
        self._other_rank = other_rank
        self._hidden_size = hidden_size
        self._kind = kind

    def receive(self, key: StepKey, num_tokens: int) -> Tensor:
        """The step's hidden states, `num_tokens` x hidden size. Raises FleetError E802."""
        try:
            with self.counter.waiting():
                header = self.carrier.receive((3,), torch.int64, SENDER_INDEX).tolist()
                if header != [*key, num_tokens]:
                    raise FleetError(
                        "E802",
                        f"link {self.counter.name}: {self._other_rank} executes step {header[0]} "
                        f"({header[2]} tokens), this rank step {key[0]} ({num_tokens} tokens)",
                        hint="the gateway did not reach every rank; the ranks must be linked again",
                    )
                hidden_TD = self.carrier.receive((num_tokens, self._hidden_size), self._kind, SENDER_INDEX)
        except RuntimeError as error:
            raise link_error(self.counter.name, self._other_rank, error) from error
        self.counter.received_bytes += hidden_TD.nbytes + 24
        return hidden_TD

    def close(self) -> None:
        self.carrier.close()


def link_error(name: str, other_rank: str, error: Exception) -> FleetError:
    """E802 in words: which link, to whom, and the carrier's own reason on one line."""
    lines = str(error).splitlines()
    reason = lines[0] if lines else type(error).__name__
    # gloo's own advice to look at the remote logs follows the reason; it does not know what we know
    reason = reason.partition(". This is typically")[0].rpartition("] ")[2] if "gloo" in reason else reason
    return FleetError(
        "E802",
        f"link {name} to {other_rank} broke: {reason or lines[0]}",
        hint=f"{other_rank} died, was unlinked, or cannot be reached",
    )
