"""Rotary position embedding, with the scalings of the families we run (transformers' `modeling_rope_utils`).

Shapes: P positions, T tokens of the step, H heads, S head size, R rotated elements of a head, F = R / 2 pairs.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from agent.facts.model import RopeSpec

Rotation = tuple[Tensor, Tensor]
"""Cosines of a step's positions, and sines negated in their first half, each T x 1 x R."""


class RotaryTable:
    """Cosines and sines of every position up to `context`, in the dtype that they are multiplied in."""

    def __init__(
        self, rope: RopeSpec, *, head_size: int, context: int, kind: torch.dtype, device: torch.device
    ) -> None:
        frequencies_F = inverse_frequencies(rope, head_size, context)
        angles_PF = torch.arange(context, dtype=torch.float32)[:, None] * frequencies_F[None]
        cos_PF, sin_PF = angles_PF.cos() * rope.magnitude, angles_PF.sin() * rope.magnitude
        self._cos_P1R = torch.cat((cos_PF, cos_PF), dim=-1)[:, None].to(device=device, dtype=kind)
        self._sin_P1R = torch.cat((-sin_PF, sin_PF), dim=-1)[:, None].to(device=device, dtype=kind)

    def at(self, positions_T: Tensor) -> Rotation:
        return self._cos_P1R.index_select(0, positions_T), self._sin_P1R.index_select(0, positions_T)


def rotate(x_THS: Tensor, rotation: Rotation) -> Tensor:
    """Rotate every head, halves paired (the Hugging Face layout, not the interleaved one)."""
    cos_T1S, sin_T1S = rotation
    return (x_THS * cos_T1S).add_(x_THS.roll(x_THS.shape[-1] // 2, -1).mul_(sin_T1S))


def rotate_part(x_THS: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first R elements of every head, and leave the rest as it is."""
    rotated = rotation[0].shape[-1]
    return torch.cat((rotate(x_THS[..., :rotated], rotation), x_THS[..., rotated:]), dim=-1)


def inverse_frequencies(rope: RopeSpec, head_size: int, context: int) -> Tensor:
    """Radians per position of each pair, float32.

    `longrope` (Ding et al., 2024) has one set of divisors for contexts up to the original one and another beyond.
    The deployment's context decides once for all sequences, as in vLLM and llama.cpp: a sequence that grew past the
    border would otherwise have to be computed anew, and could share no prefix with others.
    """
    size = int(head_size * rope.rotary_share)
    exponents_F = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    plain_F = 1.0 / (rope.theta**exponents_F)
    match rope.kind:
        case "default":
            return plain_F
        case "linear":
            return plain_F / rope.factor
        case "llama3":
            return _llama3(rope, plain_F)
        case "yarn":
            return _yarn(rope, plain_F, size)
        case "longrope":
            factors = rope.long_factors if context > rope.original_context else rope.short_factors
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents_F)
        case _:
            assert_never(rope.kind)


def _llama3(rope: RopeSpec, plain_F: Tensor) -> Tensor:
    """Wavelengths above original_context / low_freq_factor are stretched by `factor`, those below
    original_context / high_freq_factor are kept, and those between are blended (Llama 3.1's model card).
    """
    wavelengths_F = 2 * math.pi / plain_F
    is_long = wavelengths_F > rope.original_context / rope.low_freq_factor
    is_short = wavelengths_F < rope.original_context / rope.high_freq_factor
    stretched_F = torch.where(is_long, plain_F / rope.factor, plain_F)
    smooth_F = (rope.original_context / wavelengths_F - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended_F = (1 - smooth_F) * stretched_F / rope.factor + smooth_F * stretched_F
    return torch.where(is_long | is_short, stretched_F, blended_F)


def _yarn(rope: RopeSpec, plain_F: Tensor, size: int) -> Tensor:
    """Pairs that turn more than `beta_fast` times in the original context are kept, those that turn less than
    `beta_slow` times are stretched by `factor`, with a linear ramp between (Peng et al., 2023, section 3.2).
    """

    def pair_that_turns(times: float) -> float:
        return size * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncates:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    ramp_F = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept_F = 1 - ramp_F
    return plain_F / rope.factor * (1 - kept_F) + plain_F * kept_F
