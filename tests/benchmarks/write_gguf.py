"""Writes a Llama model directory (bfloat16 safetensors, byte-level BPE) as GGUF with the same bits.

A script of its own: it runs in the bench folder's Python, which has `gguf`, and needs nothing of ours.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(directory: Path, target: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "llama")
    _write_facts(writer, config)
    _write_tokenizer(writer, directory)
    path = directory / "model.safetensors"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, mode="r", offset=8 + length)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{name} is {entry['dtype']}: only bfloat16 is written")
        begin, end = entry["data_offsets"]
        tensor = data[begin:end].view("<u2").reshape(entry["shape"])
        _write_tensor(writer, _gguf_name(name), tensor, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_facts(writer: Any, config: dict[str, Any]) -> None:
    writer.add_name(config["model_type"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])


def _write_tokenizer(writer: Any, directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    special = {each["id"] for each in tokenizer["added_tokens"] if each["special"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if vocab[each] in special else gguf.TokenType.NORMAL for each in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab[settings["bos_token"]])
    writer.add_eos_token_id(vocab[settings["eos_token"]])
    writer.add_add_bos_token(True)
    writer.add_chat_template(settings["chat_template"])


def _write_tensor(writer: Any, name: str, tensor: np.ndarray[Any, Any], config: dict[str, Any]) -> None:
    if tensor.ndim == 1:
        # llama.cpp wants the norms in float32.
        writer.add_tensor(name, (tensor.astype("<u4") << 16).view("<f4"))
        return
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    kind = name.split(".")[-2]
    if kind in heads:
        # Its rotary pairs are neighbours, Hugging Face's are half a head apart.
        rows, columns = tensor.shape
        pairs = tensor.reshape(heads[kind], 2, rows // heads[kind] // 2, columns)
        tensor = pairs.swapaxes(1, 2).reshape(rows, columns)
    bytes_of_rows = np.ascontiguousarray(tensor).view(np.uint8)
    writer.add_tensor(name, bytes_of_rows, raw_dtype=gguf.GGMLQuantizationType.BF16)


def _gguf_name(name: str) -> str:
    base = name.removesuffix(".weight")
    if base.startswith("model.layers."):
        _, _, layer, part = base.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[base]}.weight"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
