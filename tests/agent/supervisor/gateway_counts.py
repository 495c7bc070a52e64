"""A backend's counts, for what is measured by them."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.wire.gateway import BackendStatus


def counts(**changed: Any) -> BackendStatus:
    """Those of one that has just begun, but for what is named."""
    usual = BackendStatus(
        deployment="chat",
        generation=3,
        plan_hash="abc",
        state="active",
        slots=8,
        prompt_tokens=0,
        generated_tokens=0,
        tokens_per_s=0.0,
        ttft_s_p50=0.0,
        ttft_s_p95=0.0,
        time_per_token_s_p50=0.0,
        time_per_token_s_p95=0.0,
        running=0,
        queued=0,
        finished=0,
        failed=0,
        cancelled=0,
    )
    return msgspec.structs.replace(usual, **changed)


def after(finished: int, *, together: int = 1, **changed: Any) -> BackendStatus:
    """After so many requests of 100 + 50 tokens that took 0.1 s to the first and 0.02 s to each further one.

    `together` of them were there at once, all the time.
    """
    usual: dict[str, Any] = {
        "finished": finished,
        "prompt_tokens": 100 * finished,
        "generated_tokens": 50 * finished,
        "busy_s": 1.08 * finished / together,
        "ttft_s_sum": 0.1 * finished,
        "num_first_tokens": finished,
        "decode_s_sum": 0.98 * finished,
        "decoded_tokens": 49 * finished,
    }
    return counts(**(usual | changed))
