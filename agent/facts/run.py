"""A measured run of a deployment: the evidence that the cost model is fitted to. Frozen values, no I/O."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.facts.model import ModelSpec

RunSource = Literal["requests", "check"]
"""Clients' requests, or the canary of an apply: inside the gateway, alone, right after the shards were loaded."""


class MeasuredRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment did under a known load. A time of 0 was not measured."""

    deployment: str
    plan_hash: str
    plan_toml: str
    """Who held what, and how it was served."""
    spec: ModelSpec
    """Without its tensors: sizes are all that times hang on."""
    source: RunSource = "requests"
    """What it is of. An earlier release did not say: its canaries are taken for requests."""
    prompt_tokens: int
    """Of the requests measured."""
    streams: int
    """Sequences that decoded together."""
    ttft_s: float = 0.0
    time_per_token_s: float = 0.0
    """Seconds per token after the first (vLLM's TPOT)."""
    answer_tokens: int = 0
    """Of the requests measured, on average; 0 where an earlier release did not tell."""
    tokens_per_s: float = 0.0
    """Tokens of all answers, per second in which the deployment had any request."""
    tokens_by_streams: dict[int, int] = {}
    """Those tokens by how many requests ran in their replica when they were drawn; empty where an earlier release
    did not tell. A load of one request now and of eight then is none of four."""
    measured_at_s: float = 0.0
    """Seconds since the epoch, by the controller's clock."""

    def __post_init__(self) -> None:
        assert self.prompt_tokens > 0, f"{self.prompt_tokens} prompt tokens"
        assert self.streams > 0, f"{self.streams} streams"
