"""Every type of block against `gguf`'s own reader, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from agent.engine.gguf_blocks import dequantise, unpair_rows
from agent.models.gguf_types import QUANTISED_TYPES


@pytest.mark.parametrize("dtype", QUANTISED_TYPES)
def test_any_bytes_become_the_values_that_gguf_reads(dtype: str) -> None:
    block = QUANTISED_TYPES[dtype]
    raw = np.random.default_rng(1).integers(0, 256, (37, 5 * block.num_bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        theirs = dequantize(raw, GGMLQuantizationType[dtype])
    ours = dequantise(torch.from_numpy(raw), dtype).numpy()
    assert ours.shape == (37, 5 * block.weights)
    is_number = ~np.isnan(theirs)  # random bytes are sometimes a scale that is no number
    assert is_number.mean() > 0.9
    assert np.array_equal(ours[is_number].view(np.uint32), theirs[is_number].view(np.uint32))
    assert np.array_equal(np.isnan(ours), ~is_number)


def test_rotary_pairs_go_back_to_their_halves() -> None:
    heads, size, width = 3, 8, 5
    halves = torch.arange(heads * size * width).view(heads * size, width)
    paired = halves.view(heads, 2, size // 2, width).swapaxes(1, 2).reshape(halves.shape)  # llama.cpp's converter
    assert not torch.equal(paired, halves)
    assert torch.equal(unpair_rows(paired, size), halves)
