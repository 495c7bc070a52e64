from __future__ import annotations

import numpy as np
import pytest

from odctl.demo_model.look_back import positions_looked_at, query_and_key
from odctl.demo_model.network import Sizes, Training, first_weights, loss_and_gradients, train

SIZES = Sizes(vocab=96, hidden=64, heads=2, kv_heads=1, head_size=32, columns=32)


def _tokens(count: int) -> np.ndarray:
    """A language in which the token after the next is known: pairs (a, b) are followed by a + b."""
    random = np.random.default_rng(5)
    tokens = [2, 3]
    for _ in range(count - 2):
        tokens.append((tokens[-1] + tokens[-2]) % 90 + 2 if random.random() < 0.9 else int(random.integers(2, 92)))
    return np.array(tokens)


def test_gradients_are_those_of_the_loss() -> None:
    random = np.random.default_rng(1)
    weights = first_weights(_tokens(3000), SIZES, random)
    weights = {
        name: (value + 0.1 * random.standard_normal(value.shape)).astype(np.float64)
        for name, value in weights.items()
    }
    batch = random.integers(0, SIZES.vocab, (2, 13))
    _, gradients = loss_and_gradients(weights, batch, SIZES)
    for name, gradient in gradients.items():
        direction = random.standard_normal(gradient.shape)
        if name == "embedding":
            direction[:, 0] = 0
        step = 1e-3 / np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            moved = weights | {name: weights[name] + sign * step * direction}
            losses.append(loss_and_gradients(moved, batch, SIZES)[0])
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-2, abs=2e-3), name


def test_training_learns_what_a_bigram_model_cannot_know() -> None:
    tokens = _tokens(20_000)
    losses: list[float] = []
    training = Training(steps=120, sequences=8, length=48, peak_rate=1e-2)
    train(tokens, SIZES, training, bos=0, seed=0, on_step=lambda _, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < losses[0] - 0.25


def test_the_same_seed_learns_the_same() -> None:
    training = Training(steps=3, sequences=2, length=16)
    first, second = (train(_tokens(3000), SIZES, training, bos=0, seed=7) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_every_head_looks_its_own_distance_back_and_nowhere_else() -> None:
    table = positions_looked_at(4096, heads=16, head_size=32)
    for head in range(16):
        settled = table[16:, head]
        np.testing.assert_array_equal(settled, np.arange(16, 4096) - head - 1)
    assert (table[0] == 0).all()
    query, key = query_and_key(3, 32)
    half = 16
    angles = 10_000.0 ** (-np.arange(half) / half)
    scores = []
    for distance in range(4096):
        turned_query = (query[:half] + 1j * query[half:]) * np.exp(1j * angles * distance)
        scores.append(float((turned_query * np.conj(key[:half] + 1j * key[half:])).real.sum() / np.sqrt(32)))
    others = np.delete(np.array(scores), 3)
    assert scores[3] - others.max() > 10
