"""Writes the demo model: a directory in Hugging Face's layout that transformers and our engine load alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from agent.errors import FleetError
from agent.facts.families import FAMILIES, rules_of
from agent.facts.model import Dtype, FamilySpec
from agent.models.safetensors_index import encode_header
from odctl.demo_model.corpus import read_documents
from odctl.demo_model.look_back import PAIR_STRENGTH, ROPE_THETA, query_and_key
from odctl.demo_model.network import CONSTANT, NORM_EPS, Array, Sizes, Training, train

DEMO_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Those whose first layer computes what the training assumes: plain norms, one gated SiLU MLP, no experts."""
HEAD_SIZE = 32
MAX_CONTEXT = 4096
BOS, EOS = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""The model knows no roles: it goes on where the conversation's text ends."""
UNTRAINED_SHARE = 0.03
"""How much each further layer moves the residual stream: enough to matter, too little to spoil the words."""

Progress = Callable[[str, int, int], None]
"""Called with what is under way, how far it is, and out of how much."""


class DemoChoices(msgspec.Struct, frozen=True, kw_only=True):
    family: str = "llama"
    layers: int = 8
    hidden: int = 256
    vocab: int = 4096
    dtype: Dtype = "float32"
    steps: int = 150
    seed: int = 0


def write_demo_model(
    target: Path,
    choices: DemoChoices,
    *,
    documents: list[list[str]] | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Train and write the model; `target` appears whole or not at all. The same choices give the same files.

    Raises FleetError E101 for choices that make no model, E102 when the target has something in it, and E902
    without Python's own text.
    """
    family = _check(choices)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FleetError("E102", f"{target} exists and is not empty", hint="give another directory, or remove it")
    tell = on_progress or _stay_silent
    tell("reading text", 0, 1)
    texts = ["\n".join(document) + "\n" for document in documents or read_documents()]
    tell("reading words", 0, 1)
    tokenizer = _train_tokenizer(texts, choices.vocab)
    tokens = np.concatenate(
        [[*encoding.ids, 1] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    )
    sizes = _sizes(choices)
    learnt = train(
        tokens.astype(np.int64),
        sizes,
        Training(steps=choices.steps),
        bos=0,
        seed=choices.seed,
        on_step=lambda step, loss: tell(f"learning, {loss:.2f} nats a token", step, choices.steps),
    )
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = _tensors(family, choices, sizes, learnt)
    _write_weights(part / "model.safetensors", tensors, choices.dtype)
    tokenizer.save(str(part / "tokenizer.json"))
    for name, content in _configs(family, choices, sizes).items():
        (part / name).write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    if target.is_dir():
        target.rmdir()
    part.rename(target)


def _stay_silent(_what: str, _done: int, _total: int) -> None:
    """For callers that show no progress."""


def _check(choices: DemoChoices) -> FamilySpec:
    family = next((family for family in FAMILIES if family.name == choices.family), None)
    if family is None or family.name not in DEMO_FAMILIES:
        known = ", ".join(DEMO_FAMILIES)
        raise FleetError("E101", f"no family {choices.family!r}", hint=f"choose one of {known}")
    if choices.hidden % (2 * HEAD_SIZE) or not 64 <= choices.hidden <= 1024:
        raise FleetError("E101", f"hidden size {choices.hidden} is no multiple of 64 from 64 to 1024")
    if not 1 <= choices.layers <= 128:
        raise FleetError("E101", f"{choices.layers} layers: from 1 to 128 are possible")
    if not max(512, 2 * choices.hidden) <= choices.vocab <= 8192:
        raise FleetError(
            "E101", f"vocabulary of {choices.vocab}: from {max(512, 2 * choices.hidden)} to 8192 is possible"
        )
    return family


def _sizes(choices: DemoChoices) -> Sizes:
    heads = choices.hidden // HEAD_SIZE
    columns = -(-choices.hidden * 8 // 3 // 32) * 32
    return Sizes(
        vocab=choices.vocab,
        hidden=choices.hidden,
        heads=heads,
        kv_heads=heads // 2,
        head_size=HEAD_SIZE,
        columns=columns,
    )


def _train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise FleetError("E101", f"the text has only {tokenizer.get_vocab_size()} tokens, not {vocab}")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def _tensors(family: FamilySpec, choices: DemoChoices, sizes: Sizes, learnt: dict[str, Array]) -> dict[str, Array]:
    """Every tensor of the family by its HF name, in a stable order."""
    random = np.random.default_rng(choices.seed + 1)
    rms = float(np.sqrt(np.square(learnt["embedding"]).mean()))
    tensors: dict[str, Array] = {}
    for rule in rules_of(family, is_tied=False):
        if rule.scope not in ("layer", "dense"):
            tensors[rule.name] = learnt[rule.role] if rule.role in learnt else np.ones(sizes.hidden, np.float32)
    for layer in range(choices.layers):
        made = _first_layer(sizes, learnt, family) if layer == 0 else _further_layer(sizes, rms, random)
        for rule in rules_of(family, is_tied=False):
            if rule.scope in ("layer", "dense"):
                tensors[rule.name.format(layer=layer)] = made[rule.role]
    return tensors


def _first_layer(sizes: Sizes, learnt: dict[str, Array], family: FamilySpec) -> dict[str, Array]:
    """Looks back with what was learnt. Queries and keys read the constant column of the normalised embedding."""
    rms_of_tokens = np.sqrt(np.square(learnt["embedding"]).mean(axis=1) + NORM_EPS)
    gain = np.float32(rms_of_tokens.max() / CONSTANT)  # at least PAIR_STRENGTH for the token that reads least
    query = np.zeros((sizes.heads * HEAD_SIZE, sizes.hidden), np.float32)
    key = np.zeros((sizes.kv_heads * HEAD_SIZE, sizes.hidden), np.float32)
    for head in range(sizes.heads):
        query[head * HEAD_SIZE : (head + 1) * HEAD_SIZE, 0] = query_and_key(head + 1, HEAD_SIZE)[0] * gain
    for head in range(sizes.kv_heads):
        key[head * HEAD_SIZE : (head + 1) * HEAD_SIZE, 0] = query_and_key(0, HEAD_SIZE)[1] * gain
    made = _plain(sizes)
    if family.qk_norm:
        # normalised, every pair has the length sqrt(2); the norm's weights bring the strength back
        made["q_norm"] = made["k_norm"] = np.full(HEAD_SIZE, np.sqrt(PAIR_STRENGTH / 2), np.float32)
    kept = {role: learnt[role] for role in ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}
    return made | kept | {"q_proj": query, "k_proj": key}


def _further_layer(sizes: Sizes, rms: float, random: np.random.Generator) -> dict[str, Array]:
    """Seeded noise whose every part computes, and moves the residual stream by UNTRAINED_SHARE of its size."""

    def noise(rows: int, columns: int, scale: float = 1.0) -> Array:
        return random.standard_normal((rows, columns), np.float32) * np.float32(scale * columns**-0.5)

    share = rms * UNTRAINED_SHARE
    heads, kv_heads = sizes.heads * HEAD_SIZE, sizes.kv_heads * HEAD_SIZE
    made = _plain(sizes) | {
        "q_proj": noise(heads, sizes.hidden),
        "k_proj": noise(kv_heads, sizes.hidden),
        "v_proj": noise(kv_heads, sizes.hidden),
        "o_proj": noise(sizes.hidden, heads, share),
        "gate_proj": noise(sizes.columns, sizes.hidden),
        "up_proj": noise(sizes.columns, sizes.hidden),
        "down_proj": noise(sizes.hidden, sizes.columns, share),
    }
    for role in ("q_bias", "k_bias", "v_bias"):
        made[role] = noise(1, made[role].size, share).reshape(-1)
    return made


def _plain(sizes: Sizes) -> dict[str, Array]:
    ones = np.ones(sizes.hidden, np.float32)
    return {
        "input_norm": ones,
        "mlp_norm": ones,
        "q_bias": np.zeros(sizes.heads * HEAD_SIZE, np.float32),
        "k_bias": np.zeros(sizes.kv_heads * HEAD_SIZE, np.float32),
        "v_bias": np.zeros(sizes.kv_heads * HEAD_SIZE, np.float32),
        "q_norm": np.ones(HEAD_SIZE, np.float32),
        "k_norm": np.ones(HEAD_SIZE, np.float32),
    }


def _write_weights(path: Path, tensors: dict[str, Array], dtype: Dtype) -> None:
    code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    header = encode_header({name: (code, tensor.shape) for name, tensor in tensors.items()}, {"format": "pt"})
    with path.open("wb") as file:
        file.write(header)
        for tensor in tensors.values():
            file.write(_to_bytes(tensor, dtype))


def _to_bytes(tensor: Array, dtype: Dtype) -> bytes:
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(tensor, "<f4").view("<u4")
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
        return bytes((rounded >> 16).astype("<u2").tobytes())
    return np.ascontiguousarray(tensor, "<f2" if dtype == "float16" else "<f4").tobytes()


def _configs(family: FamilySpec, choices: DemoChoices, sizes: Sizes) -> dict[str, dict[str, Any]]:
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.columns,
        "num_hidden_layers": choices.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_CONTEXT,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": choices.dtype,
    }
    if family.uses_sliding_window:
        config["sliding_window"] = None
    if family.qkv_bias:
        del config["attention_bias"]
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": MAX_CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.7}
    return {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": tokenizer}
