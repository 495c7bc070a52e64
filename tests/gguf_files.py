"""Writes GGUF files from transformers' models, with llama.cpp's own names and ways, for every kind of quantisation.

K-quants cannot be quantised by `gguf`: their blocks are random bytes under small scales, which is a model as good
as any other. The oracle is transformers' reader of the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from tokenizers import Tokenizer

from tests.agent.serving.tokenizer import CHAT_TEMPLATE, small_tokenizer

QUANTISABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
_SCALE_AT = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Byte offsets of the float16 scales in a block."""
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def random_model(family: str, *, seed: int = 0, **choices: Any) -> Any:
    """A transformers model in float32 whose norms and biases are not at their starting values."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **choices})
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def write_gguf(
    model: Any,
    target: Path,
    quantisation: str = "F32",
    *,
    tokenizer: Tokenizer | None = None,
    split_max_tensors: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
) -> list[Path]:
    """The model in one file (or a split set) as llama.cpp's converter writes it; vectors stay in float32."""
    config = model.config
    arch = {"mixtral": "llama", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}.get(
        config.model_type, config.model_type
    )
    writer = gguf.GGUFWriter(str(target), arch, split_max_tensors=split_max_tensors)
    _write_facts(writer, config, arch)
    _write_tokenizer(writer, tokenizer or small_tokenizer(), config, chat_template)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    random = np.random.default_rng(7)
    for name, tensor in _tensors(model, arch):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias")) if "rope_" not in name else name
        assert stored is not None, f"{name} has no name in GGUF"
        _write_tensor(writer, stored, tensor, quantisation, random)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob(f"{target.stem}*.gguf"))


def reference_of(path: Path) -> Any:
    """transformers' model of a GGUF file, in float32."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def ollama_store(
    root: Path, name: str, weights: Path, layers: dict[str, bytes] | None = None, *, tag: str = "latest"
) -> Path:
    """A store with one model as `ollama pull` leaves it; the answer is the path of its manifest."""
    import hashlib

    blobs = root / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    entries = []
    for kind, content in {"model": weights.read_bytes(), **(layers or {})}.items():
        sha256 = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{sha256}").write_bytes(content)
        media = f"application/vnd.ollama.image.{kind}"
        entries.append({"mediaType": media, "digest": f"sha256:{sha256}", "size": len(content)})
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    media = "application/vnd.docker.distribution.manifest.v2+json"
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:0", "size": 0}
    manifest.write_text(json.dumps({"schemaVersion": 2, "mediaType": media, "config": config, "layers": entries}))
    return manifest


def _write_facts(writer: Any, config: Any, arch: str) -> None:
    rope = config.rope_parameters
    if "full_attention" in rope:
        rope = rope["full_attention"]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if arch == "phi3":
        writer.add_rope_dimension_count(int(head_size * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    else:
        writer.add_rope_dimension_count(head_size)
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if getattr(config, "sliding_window", None) and arch != "llama":
        writer.add_sliding_window(config.sliding_window)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if arch == "qwen3moe":
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_tokenizer(writer: Any, tokenizer: Tokenizer, config: Any, chat_template: str | None) -> None:
    content = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = content["model"]["vocab"]
    special = {each["content"] for each in content["added_tokens"] if each["special"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokens += [f"[PAD{index}]" for index in range(len(tokens), config.vocab_size)]
    kinds = [
        gguf.TokenType.CONTROL
        if token in special
        else gguf.TokenType.NORMAL
        if token in vocab
        else gguf.TokenType.UNUSED
        for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(True)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _tensors(model: Any, arch: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors under Hugging Face's names, changed as llama.cpp's converter changes them."""
    config = model.config
    for name, original in model.state_dict().items():
        tensor = original
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = (
                tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
            )
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
            continue
        yield name + (".weight" if name.endswith("experts.down_proj") else ""), tensor
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", torch.tensor(_llama3_factors(rope, config.head_dim))
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", torch.tensor(rope["long_factor"])
        yield "rope_factors_short.weight", torch.tensor(rope["short_factor"])


def _llama3_factors(rope: dict[str, Any], head_size: int) -> list[float]:
    """What each frequency is divided by (llama.cpp's `generate_extra_tensors`)."""
    factors = []
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    for index in range(0, head_size, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (index / head_size)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors


def _write_tensor(
    writer: Any, name: str, tensor: torch.Tensor, quantisation: str, random: np.random.Generator
) -> None:
    values = tensor.detach().float().numpy()
    if values.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
        writer.add_tensor(name, values)
        return
    kind = GGMLQuantizationType[quantisation]
    if quantisation in K_QUANTS:
        raw = _random_blocks(values.shape, quantisation, random)
    else:
        raw = gguf.quants.quantize(values, kind)
    writer.add_tensor(name, raw, raw_dtype=kind)


def _random_blocks(shape: Sequence[int], quantisation: str, random: np.random.Generator) -> np.ndarray[Any, Any]:
    weights, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[quantisation]]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // weights, num_bytes), dtype=np.uint8)
    if quantisation == "Q6_K":
        blocks[..., 192:208] = random.integers(1, 32, blocks[..., 192:208].shape, dtype=np.uint8)
    for place, at in enumerate(_SCALE_AT[quantisation]):
        scale = random.uniform(1e-4, 2e-4, blocks.shape[:-1]).astype(np.float16) * (1 if place == 0 else 8)
        blocks[..., at : at + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)
