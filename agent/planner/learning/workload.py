"""What a plan was asked to do: the context in which its figures hold, as a bucket and as numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

LinkClass = Literal["none", "host", "network"]
"""The slowest link between ranks of a replica: there is none, it stays on its host, or it crosses the network."""

LINK_RANK: dict[LinkClass, float] = {"none": 0.0, "host": 0.5, "network": 1.0}
SHORT_PROMPT, LONG_PROMPT = 512, 2048
"""Tokens; above the latter tensor parallelism is said to pay."""
DEEP_MODEL = 20
"""Layers above which a pipeline is said to pay."""
FEW_AT_ONCE = 8


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """A workload and the model and links that bore it. Lengths and the batch are means, the batch while busy."""

    prompt_tokens: float
    output_tokens: float
    batch: float
    num_layers: int
    weight_bytes: float
    """Of the whole model, as served; of experts those that a token is computed with."""
    has_experts: bool = False
    link: LinkClass = "none"


def bucket_of(context: Context) -> str:
    """`short prompts, few at once, deep model`: contexts of one bucket are compared with each other."""
    prompt, batch = context.prompt_tokens, context.batch
    length = "short" if prompt <= SHORT_PROMPT else "medium" if prompt <= LONG_PROMPT else "long"
    # One request after another overlaps a little at its ends.
    load = "one at a time" if batch < 1.5 else "few at once" if batch <= FEW_AT_ONCE else "many at once"
    depth = "deep" if context.num_layers > DEEP_MODEL else "shallow"
    return f"{length} prompts, {load}, {depth} model"


def features_of(context: Context, predicted_s: float) -> tuple[float, ...]:
    """Numbers around 1 for the linear model: a constant, logarithms of sizes, and what kind of model and link.

    The predicted time stands for all that the cost model knows of devices and weights.
    """
    return (
        1.0,
        _scaled(context.prompt_tokens, 1024),
        _scaled(context.output_tokens, 512),
        _scaled(context.batch, 16),
        _scaled(context.num_layers, 48),
        _scaled(context.weight_bytes, 3e10),
        float(context.has_experts),
        LINK_RANK[context.link],
        _scaled(predicted_s, 0.015),
    )


NUM_FEATURES = 9


def link_class(hosts: Sequence[str]) -> LinkClass:
    """The class of the slowest link among ranks on these hosts, one entry a rank."""
    if len(hosts) < 2:
        return "none"
    return "host" if len(set(hosts)) == 1 else "network"


def _scaled(value: float, middle: float) -> float:
    """Natural logarithm against a usual value, a factor of ten being about 1."""
    return math.log(max(value, 1e-9) / middle) / math.log(10)
