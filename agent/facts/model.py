"""A model as its headers describe it. Frozen values, no I/O, no torch.

A family is data (`FamilySpec`): what a Hugging Face architecture calls its tensors and which of the few
structural choices it makes. The planner sizes shards from it, the fetcher finds byte ranges with it and the
engine builds layers from it; none of them knows a model by name.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

Quantisation = Literal["none", "int8", "int4", "fp8"]
"""How a rank keeps the matrices of its layers and its head; embeddings, norms and biases stay in the dtype."""


RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary embedding. `kind` is HF's `rope_type`; a field that its kind does not use keeps its default."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    rotary_share: float = 1.0
    """Of every head, from its first element on; the rest is left as it is (HF `partial_rotary_factor`)."""
    magnitude: float = 1.0
    """Cosines and sines are multiplied by it (HF `attention_factor` of `yarn` and `longrope`)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncates: bool = True
    """Whether `yarn` rounds the borders of its blend to whole pairs."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """`longrope`: one divisor for each rotated pair, for contexts up to `original_context` and beyond it."""


class FamilySpec(msgspec.Struct, frozen=True, kw_only=True):
    """Structural choices shared by all models of one architecture. The rows are in `facts.families`."""

    name: str
    """Ollama's and GGUF's family name: `llama`, `qwen2` … (to GGUF, Mixtral is a `llama` with experts)."""
    architecture: str
    """HF `architectures[0]`, e.g. `LlamaForCausalLM`."""
    qkv_bias: bool = False
    qk_norm: bool = False
    uses_sliding_window: bool = False
    full_layer_period: int = 0
    """Every so many layers one attends to everything, where a config names no layer types; 0: none does."""
    norm_adds_one: bool = False
    """Norms multiply by 1 + weight, in float32, before they round (Gemma)."""
    has_output_norms: bool = False
    """Attention and MLP are normed once more before they are added to the residual (Gemma)."""
    scales_embedding: bool = False
    """Embeddings are multiplied by sqrt(hidden_size), rounded to their dtype (Gemma)."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    fuses_projections: bool = False
    """Queries, keys and values lie in one stored tensor, gate and up in another (Phi)."""
    expert_names: Literal["none", "mixtral", "qwen"] = "none"
    """Whose names the experts' tensors have, in a family that has experts."""


StoredForm = Literal["plain", "paired_rows", "plus_one"]
"""How a file's values differ from Hugging Face's: not at all; within each head the rows of a rotary pair are
neighbours; one was added (both are llama.cpp's ways)."""


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor in a safetensors or GGUF file: `offset` counts from the start of the file, in bytes."""

    name: str
    file: str
    dtype: str
    """The format's own name: `F32`, `BF16`, `F16`, in GGUF also `Q8_0`, `Q4_K` …"""
    shape: tuple[int, ...]
    offset: int
    length: int
    form: StoredForm = "plain"


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that planning, fetching and serving need to know of a model, read from headers alone.

    `digest` is the sha256 over the model's manifest (file names, sizes and content hashes), in hex.
    """

    name: str
    family: FamilySpec
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    max_context: int
    rms_norm_eps: float
    rope: RopeSpec
    tie_word_embeddings: bool
    dtype: Dtype
    """Dtype of the stored weights."""
    num_parameters: int
    sliding_window: int | None = None
    """Positions that a query sees, its own among them, in every layer but `full_layers`."""
    full_layers: tuple[int, ...] = ()
    local_rope: RopeSpec | None = None
    """Of the windowed layers, where it differs from `rope` (Gemma 3)."""
    attention_scale: float | None = None
    """Multiplies attention scores; None: 1 / sqrt(head_size)."""
    attention_softcap: float | None = None
    """Scores s become c * tanh(s / c) before they are masked; likewise logits by `logit_softcap`."""
    logit_softcap: float | None = None
    num_experts: int = 0
    """Of each layer but `dense_layers`; 0 for a model without experts."""
    experts_per_token: int = 0
    expert_size: int = 0
    """MLP columns of one expert; `intermediate_size` are those of a dense layer."""
    normalises_experts: bool = False
    """Whether the weights of a token's experts are scaled to a sum of 1."""
    dense_layers: tuple[int, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    digest: str = ""
    tensors: tuple[TensorEntry, ...] = ()

    @property
    def stored_as(self) -> str:
        """The format's name of the type that most of the stored bytes have: `BF16`, `Q4_K`; "" without tensors."""
        lengths: dict[str, int] = {}
        for entry in self.tensors:
            lengths[entry.dtype] = lengths.get(entry.dtype, 0) + entry.length
        return max(lengths, key=lambda dtype: lengths[dtype], default="")

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def mlp_columns(self) -> int:
        """The columns that tensor parallelism shares out: of every expert, or of the one MLP."""
        return self.expert_size if self.num_experts else self.intermediate_size

    @property
    def num_active_parameters(self) -> int:
        """Of `num_parameters`, those that one token is computed with."""
        idle = self.num_experts - self.experts_per_token
        return self.num_parameters - (self.num_layers - len(self.dense_layers)) * idle * (
            3 * self.hidden_size * self.expert_size
        )

    @property
    def widths(self) -> str:
        """What a layer's time and the head's hang on, as a key: models that differ in depth or weights share it."""
        parts = [
            self.family.architecture,
            f"hidden {self.hidden_size}",
            f"heads {self.num_heads}/{self.num_kv_heads}x{self.head_size}",
            f"mlp {self.intermediate_size}",
            f"vocabulary {self.vocab_size}",
        ]
        if self.num_experts:
            parts.append(f"experts {self.experts_per_token}/{self.num_experts}x{self.expert_size}")
        if self.sliding_window is not None:
            parts.append(f"window {self.sliding_window}")
        return ", ".join(parts)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts and a router instead of one MLP."""
        return self.num_experts > 0 and layer not in self.dense_layers

    def window_of(self, layer: int) -> int | None:
        """Positions that a query sees in this layer; None for all before it."""
        return None if layer in self.full_layers else self.sliding_window

    def rope_of(self, layer: int) -> RopeSpec:
        return self.rope if self.local_rope is None or layer in self.full_layers else self.local_rope
