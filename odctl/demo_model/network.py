"""Learns with numpy what of a decoder can be learnt in a minute: its first layer, embedding and head.

The first layer's attention is fixed: head h looks h + 1 tokens back (`look_back` builds that out of rotary
embeddings). What its heads carry, the MLP, the embedding and the output head are learnt together by gradient
descent on next-token cross-entropy: a neural n-gram model (Bengio et al. 2003) inside a real decoder.

Shapes: V vocabulary, C hidden, B sequences, T tokens, H heads, K kv heads, D head size, F MLP columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from odctl.demo_model.look_back import positions_looked_at

Array = NDArray[Any]
"""float32 throughout."""
Tokens = NDArray[np.int64]

CONSTANT = 1.0
"""Column 0 of every embedding: what gives queries and keys without a bias something constant to read."""
NORM_EPS = 1e-6
_ADAM_BETAS = (0.9, 0.98)
_SMOOTHING = 2.0
_RATIO_SMOOTHING = 20.0
"""Pretended occurrences of each token in which the next one followed by pure chance."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    vocab: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    columns: int


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """`steps` batches of `sequences` times `length` tokens."""

    steps: int = 150
    sequences: int = 16
    length: int = 96
    peak_rate: float = 3e-3


def train(
    tokens: Tokens,
    sizes: Sizes,
    training: Training,
    *,
    bos: int,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Array]:
    """Weights by our roles: embedding, v_proj, o_proj, gate_proj, up_proj, down_proj, head. Deterministic."""
    random = np.random.default_rng(seed)
    weights = first_weights(tokens, sizes, random)
    first, second = ({name: np.zeros_like(value) for name, value in weights.items()} for _ in range(2))
    for step, batch in enumerate(_batches(tokens, training, bos=bos, random=random), start=1):
        loss, gradients = loss_and_gradients(weights, batch, sizes)
        rate = training.peak_rate * min(1.0, step / 20) * (0.5 + 0.5 * np.cos(np.pi * step / training.steps))
        for name, gradient in gradients.items():
            first[name] = _ADAM_BETAS[0] * first[name] + (1 - _ADAM_BETAS[0]) * gradient
            second[name] = _ADAM_BETAS[1] * second[name] + (1 - _ADAM_BETAS[1]) * gradient**2
            mean = first[name] / (1 - _ADAM_BETAS[0] ** step)
            spread = np.sqrt(second[name] / (1 - _ADAM_BETAS[1] ** step)) + 1e-8
            weights[name] -= (rate * mean / spread).astype(np.float32)
        weights["embedding"][:, 0] = CONSTANT
        if on_step is not None:
            on_step(step, loss)
    return weights


def first_weights(tokens: Tokens, sizes: Sizes, random: np.random.Generator) -> dict[str, Array]:
    """Where training begins: embedding and head factorise the log bigram statistics, the rest is small noise.

    With rows of equal norm the final norm only scales, so before the first step the model is the best bigram
    model of this rank (the SVD of the log ratios, as in Levy and Goldberg 2014).
    """
    left, right = _factor_bigrams(tokens, sizes.vocab, sizes.hidden - 2, random)
    embedding = np.zeros((sizes.vocab, sizes.hidden), np.float32)
    embedding[:, 0] = CONSTANT
    embedding[:, 2:] = left
    squared = np.square(embedding).sum(axis=1)
    embedding[:, 1] = np.sqrt(squared.max() - squared)
    scale = np.sqrt(squared.max() / sizes.hidden)
    counts = np.bincount(tokens, minlength=sizes.vocab) + _SMOOTHING
    head = np.zeros_like(embedding)
    head[:, 0] = np.log(counts / counts.sum()) * scale / CONSTANT
    head[:, 2:] = right * scale
    return {
        "embedding": embedding,
        "v_proj": _noise(random, (sizes.kv_heads * sizes.head_size, sizes.hidden), sizes.hidden**-0.5),
        "o_proj": _noise(random, (sizes.hidden, sizes.heads * sizes.head_size), 0.01),
        "gate_proj": _noise(random, (sizes.columns, sizes.hidden), sizes.hidden**-0.5),
        "up_proj": _noise(random, (sizes.columns, sizes.hidden), sizes.hidden**-0.5),
        "down_proj": _noise(random, (sizes.hidden, sizes.columns), 0.01),
        "head": head,
    }


class Activations(NamedTuple):
    """What the forward pass leaves for the backward one.

    `looked_at` [T, H], `kv_of_head` [H], `values` [B, T, kv heads, D], `carried` [B, T, H * D], `gate` and `up`
    [B, T, F]; `embedded`, `mixed` (after attention) and `final` (after the MLP) [B, T, C].
    """

    looked_at: Tokens
    kv_of_head: Tokens
    embedded: Array
    values: Array
    carried: Array
    mixed: Array
    gate: Array
    up: Array
    final: Array


def forward(weights: dict[str, Array], inputs: Tokens, sizes: Sizes) -> Activations:
    """Embedding, first layer, and the residual stream before the final norm."""
    sequences, length = inputs.shape
    looked_at = positions_looked_at(length, heads=sizes.heads, head_size=sizes.head_size)
    kv_of_head = np.arange(sizes.heads) // (sizes.heads // sizes.kv_heads)
    embedded = weights["embedding"][inputs]
    values = (_normalise(embedded) @ weights["v_proj"].T).reshape(
        sequences, length, sizes.kv_heads, sizes.head_size
    )
    carried = values[:, looked_at, kv_of_head].reshape(sequences, length, -1)
    mixed = embedded + carried @ weights["o_proj"].T
    mixed_norm = _normalise(mixed)
    gate, up = mixed_norm @ weights["gate_proj"].T, mixed_norm @ weights["up_proj"].T
    final = mixed + (gate * _sigmoid(gate) * up) @ weights["down_proj"].T
    return Activations(looked_at, kv_of_head, embedded, values, carried, mixed, gate, up, final)


def loss_and_gradients(weights: dict[str, Array], batch: Tokens, sizes: Sizes) -> tuple[float, dict[str, Array]]:
    """Mean cross-entropy in nats of a [B, T + 1] batch, and its exact gradient for every weight."""
    inputs, targets = batch[:, :-1], batch[:, 1:].reshape(-1)
    activations = forward(weights, inputs, sizes)
    every = np.arange(targets.size)
    final_norm = _normalise(activations.final).reshape(targets.size, -1)
    shares = final_norm @ weights["head"].T
    shares -= shares.max(axis=1, keepdims=True)
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=1, keepdims=True)
    loss = float(-np.log(shares[every, targets] + 1e-30).mean())
    shares[every, targets] -= 1  # from here on the gradient of the logits
    shares /= targets.size
    to_final = _normalise_back((shares @ weights["head"]).reshape(activations.final.shape), activations.final)
    gradients = _backward(weights, activations, inputs, to_final, sizes)
    gradients["head"] = shares.T @ final_norm
    return loss, gradients


def _backward(
    weights: dict[str, Array], activations: Activations, inputs: Tokens, to_final: Array, sizes: Sizes
) -> dict[str, Array]:
    """From the gradient of `final` down to every weight below it. `to_x` is the gradient of x."""
    gate, up, mixed = activations.gate, activations.up, activations.mixed
    sigmoid, mixed_norm = _sigmoid(gate), _normalise(mixed)
    to_active = to_final @ weights["down_proj"]
    to_up = to_active * gate * sigmoid
    to_gate = to_active * up * sigmoid * (1 + gate * (1 - sigmoid))
    to_mixed_norm = to_gate @ weights["gate_proj"] + to_up @ weights["up_proj"]
    to_mixed = to_final + _normalise_back(to_mixed_norm, mixed)
    to_carried = (to_mixed @ weights["o_proj"]).reshape(*inputs.shape, sizes.heads, sizes.head_size)
    to_values = np.zeros_like(activations.values)
    for position, looked_at in enumerate(activations.looked_at):
        for head, source in enumerate(looked_at):
            to_values[:, source, activations.kv_of_head[head]] += to_carried[:, position, head]
    to_values = to_values.reshape(*inputs.shape, -1)
    to_embedded = to_mixed + _normalise_back(to_values @ weights["v_proj"], activations.embedded)
    to_embedding = np.zeros_like(weights["embedding"])
    np.add.at(to_embedding, inputs.reshape(-1), to_embedded.reshape(inputs.size, -1))
    to_embedding[:, 0] = 0  # the constant column is given, not learnt
    return {
        "embedding": to_embedding,
        "v_proj": _outer(to_values, _normalise(activations.embedded)),
        "o_proj": _outer(to_mixed, activations.carried),
        "gate_proj": _outer(to_gate, mixed_norm),
        "up_proj": _outer(to_up, mixed_norm),
        "down_proj": _outer(to_final, gate * sigmoid * up),
    }


def _batches(tokens: Tokens, training: Training, *, bos: int, random: np.random.Generator) -> Iterator[Tokens]:
    for _ in range(training.steps):
        begins = random.integers(0, len(tokens) - training.length - 1, training.sequences)
        batch = tokens[begins[:, None] + np.arange(training.length + 1)[None, :]]
        batch[:, 0] = bos
        yield batch


def _factor_bigrams(tokens: Tokens, vocab: int, rank: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Two [V, rank] factors of log(P(next | token) / P(next)), by randomised SVD (Halko et al. 2011)."""
    pairs = np.bincount(tokens[:-1] * vocab + tokens[1:], minlength=vocab * vocab)
    table = pairs.reshape(vocab, vocab).astype(np.float32)
    totals = table.sum(axis=1, keepdims=True)
    unigram = (table.sum(axis=0) + _SMOOTHING) / np.float32(len(tokens) + _SMOOTHING * vocab)
    table /= unigram
    table += _RATIO_SMOOTHING
    table /= totals + _RATIO_SMOOTHING
    np.log(table, out=table)
    basis = table @ random.standard_normal((vocab, rank + 16), np.float32)
    basis = table @ (table.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    left, values, right = np.linalg.svd(basis.T @ table, full_matrices=False)
    root = np.sqrt(values[:rank])
    return (basis @ left[:, :rank]) * root, right[:rank].T * root


def _sigmoid(gate: Array) -> Array:
    with np.errstate(over="ignore"):  # exp overflows to infinity, and 1 / (1 + infinity) is the right 0
        return 1 / (1 + np.exp(-gate))


def _normalise(hidden: Array) -> Array:
    return np.asarray(hidden / np.sqrt(np.square(hidden).mean(axis=-1, keepdims=True) + NORM_EPS), np.float32)


def _normalise_back(gradient: Array, hidden: Array) -> Array:
    scale = 1 / np.sqrt(np.square(hidden).mean(axis=-1, keepdims=True) + NORM_EPS)
    normal = hidden * scale
    return np.asarray((gradient - normal * (gradient * normal).mean(axis=-1, keepdims=True)) * scale, np.float32)


def _outer(gradient: Array, source: Array) -> Array:
    """[out, in] gradient of a matrix that maps `source` to what `gradient` belongs to."""
    return np.asarray(gradient.reshape(-1, gradient.shape[-1]).T @ source.reshape(-1, source.shape[-1]), np.float32)


def _noise(random: np.random.Generator, shape: tuple[int, int], scale: float) -> Array:
    return random.standard_normal(shape, np.float32) * np.float32(scale)
