"""The models that are measured, made once in the bench folder: the same random weights for us and for llama.cpp.

`1b` and `100m` have the shapes of Llama-3.2-1B and of a small model; their weights are seeded noise in bfloat16.
`copy` is a trained demo model, which goes on with what its prompt repeats; `copy-draft` is a small one that has
learnt from the same text, with the same tokens. What is measured against llama.cpp is written as safetensors, as
GGUF in BF16 with the same bits, and (by llama.cpp's own tool) as GGUF in Q8_0.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from agent.models.safetensors_index import encode_header
from odctl.demo_model.corpus import read_documents
from odctl.demo_model.write import DemoChoices, write_demo_model
from tests.benchmarks.output import say
from tests.benchmarks.peers import Peers

BOS, EOS = "<|begin|>", "<|end|>"
LEARNT_TOKENS = 8000
"""Of the vocabulary; the rest are tokens that no text is split into, as a model of this shape would have them."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "1b": Shape(layers=16, hidden=2048, heads=32, kv_heads=8, ffn=8192, vocab=128_256),
    "100m": Shape(layers=12, hidden=768, heads=12, kv_heads=4, ffn=2048, vocab=32_000),
}
TRAINED = {
    "copy": DemoChoices(dtype="bfloat16", layers=24, hidden=512),
    "copy-draft": DemoChoices(dtype="bfloat16", layers=4, hidden=256),
}
MAX_CONTEXT = 8192


class BenchModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model's files. `name` is also how deployments and servers call it."""

    name: str
    directory: Path
    bf16: Path
    q8_0: Path


def bench_model(peers: Peers, name: str) -> BenchModel:
    """`1b`, `100m` or `copy`; what is missing of its files is written first (each appears whole or not at all)."""
    made = BenchModel(
        name=name,
        directory=model_directory(peers, name),
        bf16=peers.models / f"{name}-bf16.gguf",
        q8_0=peers.models / f"{name}-q8_0.gguf",
    )
    if not made.bf16.exists():
        script = Path(__file__).with_name("write_gguf.py")
        _make(made.bf16, [str(peers.python), str(script), str(made.directory)])
    if not made.q8_0.exists():
        _make(made.q8_0, [str(peers.tool("llama-quantize")), str(made.bf16)], after=["Q8_0"])
    return made


def model_directory(peers: Peers, name: str) -> Path:
    """The model as safetensors alone, written first where it is missing."""
    directory = peers.models / name
    peers.models.mkdir(parents=True, exist_ok=True)
    if not directory.exists():
        say(f"writing the model {name}")
        if name in TRAINED:
            write_demo_model(directory, TRAINED[name])
        else:
            write_random_model(directory, SHAPES[name])
    return directory


def _make(target: Path, command: list[str], *, after: list[str] | None = None) -> None:
    part = target.with_name(target.name + ".part")
    subprocess.run([*command, str(part), *(after or [])], check=True, capture_output=True)
    part.rename(target)


def write_random_model(target: Path, shape: Shape, *, seed: int = 0) -> None:
    """A directory as on Hugging Face: tied embedding, plain rotary positions, seeded normal weights in bfloat16."""
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    shapes = dict(_tensor_shapes(shape))
    random = np.random.default_rng(seed)
    with (part / "model.safetensors").open("wb") as file:
        file.write(encode_header({name: ("BF16", size) for name, size in shapes.items()}, {"format": "pt"}))
        for name, size in shapes.items():
            if name.endswith("norm.weight"):
                tensor = np.ones(size, np.float32)
            else:
                tensor = random.standard_normal(size, np.float32)
                tensor *= np.float32(size[-1] ** -0.5)
            file.write(_bfloat16(tensor))
    _tokenizer(shape.vocab).save(str(part / "tokenizer.json"))
    for file_name, content in _configs(shape).items():
        (part / file_name).write_text(json.dumps(content, indent=2) + "\n")
    part.rename(target)


def _tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    kv = shape.kv_heads * shape.head_size
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        head = f"model.layers.{layer}"
        yield f"{head}.input_layernorm.weight", (shape.hidden,)
        yield f"{head}.self_attn.q_proj.weight", (shape.hidden, shape.hidden)
        yield f"{head}.self_attn.k_proj.weight", (kv, shape.hidden)
        yield f"{head}.self_attn.v_proj.weight", (kv, shape.hidden)
        yield f"{head}.self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield f"{head}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{head}.mlp.gate_proj.weight", (shape.ffn, shape.hidden)
        yield f"{head}.mlp.up_proj.weight", (shape.ffn, shape.hidden)
        yield f"{head}.mlp.down_proj.weight", (shape.hidden, shape.ffn)
    yield "model.norm.weight", (shape.hidden,)


def _bfloat16(tensor: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    bits = tensor.view("<u4")
    bits += 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
    return bytes((bits >> 16).astype("<u2").tobytes())


@functools.lru_cache(maxsize=1)
def _learnt() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNT_TOKENS,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("\n".join(lines) + "\n" for lines in read_documents()), trainer)
    return tokenizer


def _tokenizer(vocab: int) -> Tokenizer:
    learnt = json.loads(_learnt().to_str())["model"]
    tokens = dict(learnt["vocab"])
    # Words the model can say and no text is split into: nothing merges to them.
    tokens |= {f"Ġ<{index}>": index for index in range(len(tokens), vocab)}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def _configs(shape: Shape) -> dict[str, dict[str, Any]]:
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shape.vocab,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.ffn,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_size,
            "hidden_act": "silu",
            "max_position_embeddings": MAX_CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
        },
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "model_max_length": MAX_CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
        },
    }
