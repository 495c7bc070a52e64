"""Rotary position embedding, with the scalings of the families we run (transformers' `modeling_rope_utils`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agent.facts.model import RopeSpec

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of a step's positions, each T x 1 x head size."""


class RotaryTable:
    """Cosines and sines of every position up to `context`, in the dtype that they are multiplied in."""

    def __init__(
        self, rope: RopeSpec, *, head_size: int, context: int, kind: torch.dtype, device: torch.device
    ) -> None:
        angles_PF = torch.arange(context, dtype=torch.float32)[:, None] * inverse_frequencies(rope, head_size)[None]
        angles_PS = torch.cat((angles_PF, angles_PF), dim=-1)
        self._cos_PS = angles_PS.cos().to(device=device, dtype=kind)
        self._sin_PS = angles_PS.sin().to(device=device, dtype=kind)

    def at(self, positions_T: Tensor) -> Rotation:
        return self._cos_PS[positions_T][:, None], self._sin_PS[positions_T][:, None]


def rotate(x_THS: Tensor, rotation: Rotation) -> Tensor:
    """Rotate every head, halves paired (the Hugging Face layout, not the interleaved one)."""
    cos_T1S, sin_T1S = rotation
    first, second = x_THS.chunk(2, dim=-1)
    return x_THS * cos_T1S + torch.cat((-second, first), dim=-1) * sin_T1S


def inverse_frequencies(rope: RopeSpec, head_size: int) -> Tensor:
    """Radians per position of each pair, float32, head_size / 2 of them.

    `llama3`: wavelengths above original_context / low_freq_factor are stretched by `factor`, those below
    original_context / high_freq_factor are kept, and those between are blended (Llama 3.1's model card).
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
    plain = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "default":
            return plain
        case "linear":
            return plain / rope.factor
        case "llama3":
            wavelengths = 2 * math.pi / plain
            stretched = torch.where(
                wavelengths > rope.original_context / rope.low_freq_factor, plain / rope.factor, plain
            )
            smooth = (rope.original_context / wavelengths - rope.low_freq_factor) / (
                rope.high_freq_factor - rope.low_freq_factor
            )
            blended = (1 - smooth) * stretched / rope.factor + smooth * stretched
            is_long = wavelengths > rope.original_context / rope.low_freq_factor
            is_short = wavelengths < rope.original_context / rope.high_freq_factor
            return torch.where(is_long | is_short, stretched, blended)
