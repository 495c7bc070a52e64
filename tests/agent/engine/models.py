"""Small random models of every family, written by transformers, with the reference that wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agent.facts.model import ModelSpec
from agent.models.spec import read_spec
from agent.planner.plan import Range
from agent.planner.shards import ShardExtent

FAMILIES = ("llama2", "llama3", "llama_linear", "mistral", "qwen2", "qwen3")
FURTHER_FAMILIES = ("gemma2", "gemma3", "phi3", "phi4", "mixtral", "qwen3moe", "qwen2_windowed", "qwen3_yarn")
VOCAB_SIZE = 131  # prime, so that no share of it is even
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_ROPE_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 4,
}
_PARTIAL_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.25, 1.5],
    "long_factor": [2.0, 3.0, 5.0],
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model directory, our spec of it, and transformers' model of it in float32."""

    path: Path
    spec: ModelSpec
    model: Any
    _generated: dict[tuple[int, ...], list[int]]

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Logits after every token, tokens x vocabulary."""
        with torch.inference_mode():
            return torch.as_tensor(self.model(torch.tensor([tokens])).logits[0])

    def generate(self, tokens: list[int], count: int) -> list[int]:
        key = (count, *tokens)
        if key not in self._generated:
            self._generated[key] = self._generate(tokens, count)
        return self._generated[key]

    def _generate(self, tokens: list[int], count: int) -> list[int]:
        with torch.inference_mode():
            output = self.model.generate(
                torch.tensor([tokens]),
                attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
            )
        return [int(token) for token in output[0, len(tokens) :]]


def write_model(family: str, path: Path, *, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> Reference:
    """Write a seeded random model of the family in Hugging Face's layout."""
    config = _config(family)
    config.vocab_size = vocab_size
    model = _build(config, seed)
    model.save_pretrained(path)
    return Reference(path=path, spec=read_spec(path), model=model.eval(), _generated={})


def stage(spec: ModelSpec, layers: Range, shares: tuple[int, ...] = (1,)) -> tuple[ShardExtent, ...]:
    """The shards of a stage whose tensor-parallel members own heads, columns and vocabulary by these shares."""
    kv_heads = _split(spec.num_kv_heads, shares)
    columns = _split(spec.mlp_columns, shares)
    vocab = _split(spec.vocab_size, shares)
    group = spec.queries_per_kv_head
    return tuple(
        ShardExtent(
            layers=layers,
            heads=(kv_heads[index][0] * group, kv_heads[index][1] * group),
            kv_heads=kv_heads[index],
            columns=columns[index],
            vocab=vocab[index],
            is_first_stage=layers[0] == 0,
            is_last_stage=layers[1] == spec.num_layers,
        )
        for index in range(len(shares))
    )


def _split(size: int, shares: tuple[int, ...]) -> list[Range]:
    total = sum(shares)
    cuts = [size * sum(shares[:index]) // total for index in range(len(shares) + 1)]
    return [(cuts[index], cuts[index + 1]) for index in range(len(shares))]


def _config(family: str) -> Any:
    import transformers

    match family:
        case "llama2":
            return transformers.LlamaConfig(**{**_COMMON, "num_key_value_heads": 8})
        case "llama3":
            return transformers.LlamaConfig(
                **{**_COMMON, "tie_word_embeddings": True}, rope_parameters={**_ROPE_LLAMA3}
            )
        case "llama_linear":
            linear = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
            return transformers.LlamaConfig(**_COMMON, rope_parameters=linear)
        case "mistral":
            return transformers.MistralConfig(**_COMMON, sliding_window=8)
        case "qwen2":
            return transformers.Qwen2Config(**{**_COMMON, "tie_word_embeddings": True})
        case "qwen3":
            return transformers.Qwen3Config(**_COMMON, head_dim=12)
        case "gemma2":
            return transformers.Gemma2Config(
                **{**_COMMON, "tie_word_embeddings": True},
                head_dim=12,
                sliding_window=8,
                query_pre_attn_scalar=24,
                attn_logit_softcapping=2.0,  # low enough to bend the scores of a random model
                final_logit_softcapping=3.0,
            )
        case "gemma3":
            return transformers.Gemma3TextConfig(
                **{**_COMMON, "tie_word_embeddings": True},
                head_dim=12,
                sliding_window=8,
                query_pre_attn_scalar=24,
                layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                },
            )
        case "phi3":
            return transformers.Phi3Config(**_COMMON, sliding_window=8)
        case "phi4":  # Phi-4-mini: part of each head is rotated, embedding and head are one
            return transformers.Phi3Config(
                **{**_COMMON, "tie_word_embeddings": True},
                original_max_position_embeddings=256,
                rope_parameters={**_PARTIAL_ROPE},
            )
        case "phi4_long":  # prompts are longer than the context that it was trained with
            return transformers.Phi3Config(
                **_COMMON, original_max_position_embeddings=16, rope_parameters={**_PARTIAL_ROPE}
            )
        case "mixtral":
            return transformers.MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2)
        case "qwen3moe":  # layers 0 and 2 have one MLP, of another size than an expert
            return transformers.Qwen3MoeConfig(
                **{**_COMMON, "head_dim": 12},
                num_experts=6,
                num_experts_per_tok=3,
                moe_intermediate_size=24,
                norm_topk_prob=False,
                decoder_sparse_step=2,
            )
        case "qwen2_windowed":
            return transformers.Qwen2Config(
                **_COMMON, use_sliding_window=True, sliding_window=8, max_window_layers=2
            )
        case "qwen3_yarn":
            return transformers.Qwen3Config(**_COMMON, head_dim=12, rope_parameters={**_ROPE_YARN})
        case _:
            raise AssertionError(family)


def _build(config: Any, seed: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    name = type(config).__name__.replace("TextConfig", "Config").replace("Config", "ForCausalLM")
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers starts norms at 1 and biases at 0: a loader that forgot them would not be caught
            if "norm" in name or name.endswith(".bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
