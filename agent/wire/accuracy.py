"""What quantisation costs a model: asked of the agent that holds it, measured by a process of its engine."""

from __future__ import annotations

import msgspec

from agent.facts.model import Dtype, ModelSpec, Quantisation


class CheckModel(msgspec.Struct, frozen=True, kw_only=True):
    """Of a model that is whole on the asked host, by digest, or by path when the digest is not known yet."""

    quantisations: tuple[Quantisation, ...]
    digest: str = ""
    path: str = ""
    dtype: Dtype = "bfloat16"
    """What the quantised model is held against."""


class CheckConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that the measuring process is told, as JSON on its standard input: `python -m agent.engine check`."""

    host: str
    model: ModelSpec
    model_dir: str
    quantisations: tuple[Quantisation, ...]
    dtype: Dtype
    threads: int
    limit_s: int
    """It ends itself after this long, whatever became of its agent."""


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One way of keeping the matrices, next to the plain one on the same text."""

    quantisation: Quantisation
    weight_bytes: int
    perplexity: float
    top1_agreement: float
    """Share of positions whose likeliest token is the plain model's."""
    mean_kl: float
    """Mean Kullback-Leibler divergence of its next-token distribution from the plain model's, in nats."""
    measured_s: float


class AccuracyReport(msgspec.Struct, frozen=True, kw_only=True):
    """`precisions` begins with the plain model itself (`none`)."""

    host: str
    model: str
    dtype: Dtype
    num_tokens: int
    """Tokens that were predicted."""
    precisions: tuple[PrecisionReport, ...]
