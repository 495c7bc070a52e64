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
from agent.engine.exact import row_by_row
from agent.engine.kv_cache import KvCache
from agent.engine.mlp import Experts, GatedMlp, activation_of
from agent.engine.norm import RmsNorm
from agent.engine.rope import RotaryTable, Rotation, rotate, rotate_part
from agent.engine.stored_tensors import expert_role
from agent.engine.weights import ShardWeights
from agent.facts.model import ModelSpec, RopeSpec
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
        is_exact: bool = False,
    ) -> None:
        self._spec = spec
        self._vocab = extent.vocab
        self._on_layer = on_layer
        self._is_exact = is_exact
        self._embedding_VD = weights.get("embedding") if extent.is_first_stage else None
        self._embedding_scale: float | None = None
        if spec.family.scales_embedding:
            self._embedding_scale = torch.tensor(spec.hidden_size**0.5, dtype=kind).item()
        self._tables: list[RotaryTable] = []
        table_of: dict[RopeSpec, int] = {}
        layers: list[tuple[DecoderLayer, int]] = []
        for index, layer in enumerate(range(*extent.layers)):
            rope = spec.rope_of(layer)
            if rope not in table_of:
                table_of[rope] = len(self._tables)
                table = RotaryTable(rope, head_size=spec.head_size, context=context, kind=kind, device=device)
                self._tables.append(table)
            made = DecoderLayer(spec, extent, weights, layer=layer, index=index, is_exact=is_exact)
            layers.append((made, table_of[rope]))
        self._layers = tuple(layers)
        self._final_norm = None
        self._head = None
        if extent.is_last_stage:
            self._final_norm = _norm(spec, weights["final_norm"])
            self._head = weights.linear("head")

    def embed(self, tokens_T: Tensor, reduce: Reduce) -> Tensor:
        """Hidden states of the first stage; what other members own of the vocabulary is zero before `reduce`."""
        assert self._embedding_VD is not None, "not the first stage"
        begin, end = self._vocab
        if (begin, end) == (0, self._spec.vocab_size):
            hidden_TD = functional.embedding(tokens_T, self._embedding_VD)
        else:
            is_foreign_T1 = ((tokens_T < begin) | (tokens_T >= end))[:, None]
            rows_T = (tokens_T - begin).clamp(0, end - begin - 1)
            hidden_TD = reduce(functional.embedding(rows_T, self._embedding_VD).masked_fill(is_foreign_T1, 0))
        return hidden_TD if self._embedding_scale is None else hidden_TD * self._embedding_scale

    def run_layers(self, hidden_TD: Tensor, batch: Batch, cache: KvCache, reduce: Reduce) -> Tensor:
        rotations = [table.at(batch.positions) for table in self._tables]
        for layer, table in self._layers:
            hidden_TD = layer(hidden_TD, batch, cache, rotations[table], reduce)
            self._on_layer()
        return hidden_TD

    def normalise(self, hidden_RD: Tensor) -> Tensor:
        """These rows behind the final norm: what the head reads, and what an embedding is. Last stage only."""
        assert self._final_norm is not None, "not the last stage"
        return self._final_norm(hidden_RD)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits of these rows for the rank's own share of the vocabulary, R x V. Last stage only."""
        assert self._head is not None, "not the last stage"
        logits_RV = self._head(self.normalise(hidden_RD))
        softcap = self._spec.logit_softcap
        if softcap is None:
            return logits_RV
        scaled_RV = logits_RV / softcap
        return (row_by_row(torch.tanh, scaled_RV) if self._is_exact else scaled_RV.tanh_()).mul_(softcap)


class DecoderLayer:
    """Attention and MLP with their norms; heads and columns are the rank's own.

    What a family does otherwise is decided here, once: a step asks no more than whether a part is there.
    """

    def __init__(
        self,
        spec: ModelSpec,
        extent: ShardExtent,
        weights: ShardWeights,
        *,
        layer: int,
        index: int,
        is_exact: bool,
    ) -> None:
        heads, kv_heads = extent.heads[1] - extent.heads[0], extent.kv_heads[1] - extent.kv_heads[0]
        self._index = index
        self._qkv_shape = (-1, heads + 2 * kv_heads, spec.head_size)
        self._rotated = (heads + kv_heads, kv_heads)
        self._split = (heads, kv_heads)
        self._window = spec.window_of(layer)
        self._scale = spec.attention_scale
        self._softcap = spec.attention_softcap
        self._rotate = rotate if spec.rope_of(layer).rotary_share == 1 else rotate_part
        self._qkv = weights.linear("qkv", layer)
        self._o = weights.linear("o_proj", layer)
        self._mlp = _make_mlp(spec, weights, layer, is_exact=is_exact)
        self._input_norm = _norm(spec, weights["input_norm", layer])
        self._mlp_norm = _norm(spec, weights["mlp_norm", layer])
        self._qk_norm: RmsNorm | None = None
        if spec.family.qk_norm:
            q_norm_HS = weights["q_norm", layer].expand(heads, -1)
            k_norm_KS = weights["k_norm", layer].expand(kv_heads, -1)
            self._qk_norm = _norm(spec, torch.cat((q_norm_HS, k_norm_KS)))
        self._attention_out_norm: RmsNorm | None = None
        self._mlp_out_norm: RmsNorm | None = None
        if spec.family.has_output_norms:
            self._attention_out_norm = _norm(spec, weights["attention_out_norm", layer])
            self._mlp_out_norm = _norm(spec, weights["mlp_out_norm", layer])

    def __call__(
        self, hidden_TD: Tensor, batch: Batch, cache: KvCache, rotation: Rotation, reduce: Reduce
    ) -> Tensor:
        mixed_TD = reduce(self._attend(self._input_norm(hidden_TD), batch, cache, rotation))
        if self._attention_out_norm is not None:
            mixed_TD = self._attention_out_norm(mixed_TD)
        hidden_TD = hidden_TD + mixed_TD
        mixed_TD = reduce(self._mlp(self._mlp_norm(hidden_TD)))
        if self._mlp_out_norm is not None:
            mixed_TD = self._mlp_out_norm(mixed_TD)
        return hidden_TD + mixed_TD

    def _attend(self, normed_TD: Tensor, batch: Batch, cache: KvCache, rotation: Rotation) -> Tensor:
        qkv = self._qkv(normed_TD).view(self._qkv_shape)
        joint, values_TKS = qkv.split_with_sizes(self._rotated, 1)  # queries and keys have the same way to go
        if self._qk_norm is not None:
            joint = self._qk_norm(joint)
        queries_THS, keys_TKS = self._rotate(joint, rotation).split_with_sizes(self._split, 1)
        cache.store(self._index, batch, keys_TKS, values_TKS)
        mixed = attend(
            queries_THS,
            cache,
            self._index,
            batch,
            scale=self._scale,
            softcap=self._softcap,
            window=self._window,
        )
        return self._o(mixed)


def _make_mlp(spec: ModelSpec, weights: ShardWeights, layer: int, *, is_exact: bool) -> GatedMlp | Experts:
    activate = activation_of(spec.family, is_exact=is_exact)
    if not spec.is_sparse(layer):
        return GatedMlp(weights.linear("gate_up", layer), weights.linear("down_proj", layer), activate)
    experts = tuple(
        GatedMlp(
            weights.linear(expert_role("gate_up", expert), layer),
            weights.linear(expert_role("down_proj", expert), layer),
            activate,
        )
        for expert in range(spec.num_experts)
    )
    return Experts(
        weights.linear("router", layer),
        experts,
        experts_per_token=spec.experts_per_token,
        normalises=spec.normalises_experts,
    )


def _norm(spec: ModelSpec, weight: Tensor) -> RmsNorm:
    return RmsNorm(weight, spec.rms_norm_eps, adds_one=spec.family.norm_adds_one)
