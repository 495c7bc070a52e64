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


def write_model(family: str, path: Path, *, seed: int = 0) -> Reference:
    """Write a seeded random model of the family in Hugging Face's layout."""
    config = _config(family)
    model = _build(config, seed)
    model.save_pretrained(path)
    return Reference(path=path, spec=read_spec(path), model=model.eval(), _generated={})


def whole(spec: ModelSpec) -> ShardExtent:
    return ShardExtent(
        layers=(0, spec.num_layers),
        heads=(0, spec.num_heads),
        kv_heads=(0, spec.num_kv_heads),
        columns=(0, spec.intermediate_size),
        vocab=(0, spec.vocab_size),
        is_first_stage=True,
        is_last_stage=True,
    )


def stage(spec: ModelSpec, layers: Range, shares: tuple[int, ...] = (1,)) -> tuple[ShardExtent, ...]:
    """The shards of a stage whose tensor-parallel members own heads, columns and vocabulary by these shares."""
    kv_heads = _split(spec.num_kv_heads, shares)
    columns = _split(spec.intermediate_size, shares)
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
                **{**_COMMON, "tie_word_embeddings": True}, rope_parameters=_ROPE_LLAMA3
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
        case _:
            raise AssertionError(family)


def _build(config: Any, seed: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, type(config).__name__.replace("Config", "ForCausalLM"))(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers starts norms at 1 and biases at 0: a loader that forgot them would not be caught
            if "norm" in name or name.endswith(".bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
