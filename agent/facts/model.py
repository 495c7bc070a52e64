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


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary embedding. `kind` is `default`, `linear` or `llama3` (HF `rope_parameters.rope_type`)."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


class FamilySpec(msgspec.Struct, frozen=True, kw_only=True):
    """Structural choices shared by all models of one architecture. The rows are in `facts.families`."""

    name: str
    """Ollama's and GGUF's family name: `llama`, `qwen2` …"""
    architecture: str
    """HF `architectures[0]`, e.g. `LlamaForCausalLM`."""
    qkv_bias: bool = False
    qk_norm: bool = False
    uses_sliding_window: bool = False


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor in a safetensors file: `offset` counts from the start of the file, in bytes."""

    name: str
    file: str
    dtype: str
    """safetensors' own name: `F32`, `BF16`, `F16`."""
    shape: tuple[int, ...]
    offset: int
    length: int


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
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    digest: str = ""
    tensors: tuple[TensorEntry, ...] = ()

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads
