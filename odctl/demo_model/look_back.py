"""Attention that looks a fixed number of tokens back, out of rotary embeddings alone.

Query and key of a head are constants with one phase per rotary frequency, so a score depends on the distance
alone: score(n) = S * sum_f cos(theta_f * (n - back)) / sqrt(D), highest at n = back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROPE_THETA = 10_000.0
PAIR_STRENGTH = 100.0
"""S: with 16 frequencies the right distance scores 12 nats above its neighbours, so it gets all the attention."""


def query_and_key(back: int, head_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Query and key, each [D] in transformers' order: first halves of all pairs, then second halves."""
    angles = _frequencies(head_size) * back
    strength = np.sqrt(PAIR_STRENGTH)
    query = np.concatenate([np.cos(angles), -np.sin(angles)]) * strength
    key = np.concatenate([np.ones_like(angles), np.zeros_like(angles)]) * strength
    return query.astype(np.float32), key.astype(np.float32)


def positions_looked_at(length: int, *, heads: int, head_size: int) -> NDArray[np.int64]:
    """[T, H]: where head h looks from position t; t - (h + 1), but near the start the best that there is."""
    distances = np.arange(length)
    table = np.zeros((length, heads), np.int64)
    for head in range(heads):
        offsets = distances[:, None] - (head + 1)
        scores = np.cos(offsets * _frequencies(head_size)[None, :]).sum(axis=1)
        for position in range(length):
            table[position, head] = position - int(scores[: position + 1].argmax())
    return table


def _frequencies(head_size: int) -> NDArray[np.float64]:
    return ROPE_THETA ** (-np.arange(head_size // 2) * 2.0 / head_size)
