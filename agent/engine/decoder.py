"""The decoder, built from data: one code for every family in `facts.families`, and for any shard of it.

Shapes: T tokens of the step, R rows that sample, D hidden size, H/K local query and KV heads, S head size, V local
vocabulary. `reduce` sums a partial result over the stage's tensor-parallel group (the identity without one).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.attention import attend
from agent.engine.batch import Batch
from agent.engine.kv_cache import KvCache
from agent.engine.linear import Linear
from agent.engine.rope import RotaryTable, Rotation, rotate
from agent.engine.weights import ShardWeights
from agent.facts.model import ModelSpec
from agent.planner.shards import ShardExtent

Reduce = Callable[[Tensor], Tensor]


class Decoder:
    """The part of a model that one rank executes. Progress is told layer by layer through `on_layer`."""

    def __init__(
        self,
        spec: ModelSpec,
        extent: ShardExtent,
        weights: ShardWeights,
        *,
        context: int,
        kind: torch.dtype,
        device: torch.device,
        on_layer: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._vocab = extent.vocab
        self._on_layer = on_layer
        self._embedding_VD = weights.get("embedding") if extent.is_first_stage else None
        self._layers = tuple(
            DecoderLayer(spec, extent, weights, layer=layer, index=index)
            for index, layer in enumerate(range(*extent.layers))
        )
        self._final_norm_D = weights.get("final_norm") if extent.is_last_stage else None
        self._head = None
        if extent.is_last_stage:
            is_tied = spec.tie_word_embeddings
            is_shared = is_tied and extent.is_first_stage
            role = "embedding" if is_tied else "head"
            self._head = Linear(weights[role] if is_shared else weights.take(role), is_shared=is_shared)
        self._rotary = RotaryTable(spec.rope, head_size=spec.head_size, context=context, kind=kind, device=device)

    def embed(self, tokens_T: Tensor, reduce: Reduce) -> Tensor:
        """Hidden states of the first stage; what other members own of the vocabulary is zero before `reduce`."""
        assert self._embedding_VD is not None, "not the first stage"
        begin, end = self._vocab
        if (begin, end) == (0, self._spec.vocab_size):
            return functional.embedding(tokens_T, self._embedding_VD)
        is_foreign_T1 = ((tokens_T < begin) | (tokens_T >= end))[:, None]
        rows_T = (tokens_T - begin).clamp(0, end - begin - 1)
        return reduce(functional.embedding(rows_T, self._embedding_VD).masked_fill(is_foreign_T1, 0))

    def run_layers(self, hidden_TD: Tensor, batch: Batch, cache: KvCache, reduce: Reduce) -> Tensor:
        rotation = self._rotary.at(batch.positions)
        for layer in self._layers:
            hidden_TD = layer(hidden_TD, batch, cache, rotation, reduce)
            self._on_layer()
        return hidden_TD

    def normalise(self, hidden_RD: Tensor) -> Tensor:
        """These rows behind the final norm: what the head reads, and what an embedding is. Last stage only."""
        assert self._final_norm_D is not None, "not the last stage"
        return rms_norm(hidden_RD, self._final_norm_D, self._spec.rms_norm_eps)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits of these rows for the rank's own share of the vocabulary, R x V. Last stage only."""
        assert self._head is not None, "not the last stage"
        return self._head(self.normalise(hidden_RD))


class DecoderLayer:
    """Attention and MLP with their norms; heads and columns are the rank's own."""

    def __init__(
        self, spec: ModelSpec, extent: ShardExtent, weights: ShardWeights, *, layer: int, index: int
    ) -> None:
        self._index = index
        self._eps = spec.rms_norm_eps
        self._head_size = spec.head_size
        self._num_heads = extent.heads[1] - extent.heads[0]
        self._num_kv_heads = extent.kv_heads[1] - extent.kv_heads[0]
        self._window = spec.sliding_window
        self._input_norm_D = weights["input_norm", layer]
        self._mlp_norm_D = weights["mlp_norm", layer]
        self._qkv = Linear(weights.take("qkv", layer), weights.get("qkv_bias", layer))
        self._o = Linear(weights.take("o_proj", layer))
        self._gate_up = Linear(weights.take("gate_up", layer))
        self._down = Linear(weights.take("down_proj", layer))
        self._q_norm_S = weights.get("q_norm", layer)
        self._k_norm_S = weights.get("k_norm", layer)

    def __call__(
        self, hidden_TD: Tensor, batch: Batch, cache: KvCache, rotation: Rotation, reduce: Reduce
    ) -> Tensor:
        normed_TD = rms_norm(hidden_TD, self._input_norm_D, self._eps)
        hidden_TD = hidden_TD + reduce(self._attend(normed_TD, batch, cache, rotation))
        normed_TD = rms_norm(hidden_TD, self._mlp_norm_D, self._eps)
        gate_TC, up_TC = self._gate_up(normed_TD).chunk(2, dim=-1)
        return hidden_TD + reduce(self._down(functional.silu(gate_TC) * up_TC))

    def _attend(self, normed_TD: Tensor, batch: Batch, cache: KvCache, rotation: Rotation) -> Tensor:
        qkv = self._qkv(normed_TD).view(normed_TD.shape[0], -1, self._head_size)
        queries_THS, keys_TKS, values_TKS = torch.split(
            qkv, [self._num_heads, self._num_kv_heads, self._num_kv_heads], dim=1
        )
        if self._q_norm_S is not None and self._k_norm_S is not None:
            queries_THS = rms_norm(queries_THS, self._q_norm_S, self._eps)
            keys_TKS = rms_norm(keys_TKS, self._k_norm_S, self._eps)
        queries_THS = rotate(queries_THS, rotation)
        keys_TKS = rotate(keys_TKS, rotation)
        cache.store(self._index, batch, keys_TKS, values_TKS)
        return self._o(attend(queries_THS, cache, self._index, batch, window=self._window))


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root mean square norm in float32, rounded before the gain, as transformers does it."""
    return gain * functional.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype)
