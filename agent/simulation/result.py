"""What a simulation saw. Times are seconds of the virtual clock since its begin."""

from __future__ import annotations

from typing import Literal

import msgspec

Refusal = Literal["", "queue full", "too long"]


class SimulatedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. One that was refused has no tokens."""

    index: int
    arrived_s: float
    prompt_tokens: int
    wanted_output_tokens: int
    token_s: tuple[float, ...] = ()
    """When each token reached the client."""
    refusal: Refusal = ""

    @property
    def ttft_s(self) -> float:
        """Seconds from its arrival to its first token."""
        return self.token_s[0] - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None where there is none."""
        if len(self.token_s) < 2:
            return None
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1)


class StageUse(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """`gpu01/cuda:0+cuda:1`: its devices."""
    busy_s: float
    """Computing, and keeping its link busy."""
    busy_share: float
    """Of the whole time."""
    bubble: float
    """Share of the time with steps in flight in which it waited for them."""


class ReplicaUse(msgspec.Struct, frozen=True, kw_only=True):
    steps: int
    mean_rows: float
    """Tokens of a step, guesses included."""
    in_flight_s: float
    """How long there were steps in flight."""
    blocks: int
    """Of its KV cache."""
    peak_blocks: int
    """Most that running sequences held at once."""
    mean_blocks: float
    """Over the time with steps in flight."""
    preemptions: int
    prefix_hit_tokens: int
    drafts_proposed: int
    drafts_accepted: int
    stages: tuple[StageUse, ...]


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """From the begin of the trace to the last token."""

    elapsed_s: float
    requests: tuple[SimulatedRequest, ...]
    """In the order of the trace."""
    mean_queued: float
    """Requests that waited for a slot, over the whole time."""
    peak_queued: int
    replicas: tuple[ReplicaUse, ...]
