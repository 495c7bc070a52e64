"""Specs out of GGUF headers equal those of the directories that the files were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest

from agent.errors import FleetError
from agent.models.gguf_types import block_of, num_stored_bytes, stored_slice
from agent.models.ranges import range_of
from agent.models.spec import read_spec
from agent.planner.shards import TensorSlice, slice_shard
from tests.agent.models.conftest import extent_of
from tests.gguf_files import ROPE_LLAMA3, random_model, write_gguf

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 64}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "num_hidden_layers": 6,
            "sliding_window": 64,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": ("phi3", {"original_max_position_embeddings": 512, "sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "head_dim": 64}),
    "qwen3moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 64, "norm_topk_prob": True}),
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_gguf(random_model("llama", head_dim=64), tmp_path / "llama.gguf", "Q4_K")
    return tmp_path / "llama.gguf"


@pytest.mark.parametrize("name", MODELS)
def test_a_family_s_spec_is_that_of_its_directory(name: str, tmp_path: Path) -> None:
    family, choices = MODELS[name]
    model = random_model(family, **choices)
    model.save_pretrained(tmp_path / "directory")
    write_gguf(model, tmp_path / "m.gguf", "F32")
    theirs, ours = read_spec(tmp_path / "directory", name="m"), read_spec(tmp_path / "m.gguf")
    assert {entry.name: entry.shape for entry in ours.tensors} == {
        entry.name: entry.shape for entry in theirs.tensors
    }
    # metadata are in float32
    close = {"rms_norm_eps": pytest.approx(theirs.rms_norm_eps, rel=1e-6)}
    for field in ("attention_scale", "attention_softcap", "logit_softcap"):
        if getattr(theirs, field) is not None:
            close[field] = pytest.approx(getattr(theirs, field), rel=1e-6)
    for field in ours.__struct_fields__:
        if field not in ("tensors", *close):
            assert getattr(ours, field) == getattr(theirs, field), field
    for field, value in close.items():
        assert getattr(ours, field) == value, field


def test_tensors_carry_what_the_converter_did_to_them(llama: Path, tmp_path: Path) -> None:
    forms = {entry.name: entry.form for entry in read_spec(llama).tensors}
    assert forms["model.layers.1.self_attn.q_proj.weight"] == "paired_rows"
    assert forms["model.layers.1.self_attn.k_proj.weight"] == "paired_rows"
    assert forms["model.layers.1.self_attn.v_proj.weight"] == "plain"
    write_gguf(random_model("gemma2", head_dim=64, tie_word_embeddings=True), tmp_path / "gemma.gguf", "F32")
    forms = {entry.name: entry.form for entry in read_spec(tmp_path / "gemma.gguf").tensors}
    assert forms["model.norm.weight"] == "plus_one"
    assert {form for name, form in forms.items() if "proj" in name} == {"plain"}


def test_rope_factors_become_divisors(tmp_path: Path) -> None:
    write_gguf(random_model("llama", head_dim=64, rope_parameters=ROPE_LLAMA3), tmp_path / "m.gguf", "F32")
    rope = read_spec(tmp_path / "m.gguf").rope
    assert rope.kind == "longrope"
    assert rope.short_factors == rope.long_factors
    assert len(rope.short_factors) == 32
    assert rope.short_factors[0] == 1.0
    assert rope.short_factors[-1] == 8.0


def test_a_split_set_is_one_model(tmp_path: Path) -> None:
    files = write_gguf(random_model("llama", head_dim=64), tmp_path / "m.gguf", "Q8_0", split_max_tensors=8)
    spec = read_spec(files[0])
    assert {entry.file for entry in spec.tensors} == {f"model-0000{index}-of-00003.gguf" for index in (1, 2, 3)}
    files[1].unlink()
    with pytest.raises(FleetError, match=r"1 of 3 files of m-00001-of-00003\.gguf are missing") as caught:
        read_spec(files[0])
    assert caught.value.code == "E704"


def test_a_cut_through_blocks_reads_whole_ones(llama: Path) -> None:
    spec = read_spec(llama)
    entry = next(entry for entry in spec.tensors if entry.name.endswith("1.self_attn.o_proj.weight"))
    assert (entry.dtype, entry.shape) == ("Q4_K", (256, 256))
    piece = TensorSlice(role="o_proj", name=entry.name, layer=1, shape=entry.shape, dim=1, begin=64, end=192)
    stored = stored_slice(entry, piece)
    assert (stored.skip, stored.columns, stored.row_bytes, stored.count) == (64, 256, 144, 256)
    down = next(entry for entry in spec.tensors if entry.name.endswith("1.mlp.down_proj.weight"))
    piece = TensorSlice(role="down_proj", name=down.name, layer=1, shape=down.shape, dim=1, begin=256, end=512)
    found = range_of(down, piece)
    assert (found.offset, found.length, found.stride, found.count) == (down.offset + 144, 144, 288, 256)


@pytest.mark.parametrize("shares", [1, 2])
def test_slices_cover_every_block_about_once(llama: Path, shares: int) -> None:
    spec = read_spec(llama)
    total = 0
    for share in range(shares):
        pieces = slice_shard(spec, extent_of(spec, layers=(0, 2), share=(share, shares)))
        entries = {entry.name: entry for entry in spec.tensors}
        total += sum(range_of(entries[piece.name], piece).num_bytes for piece in pieces)
    stored = sum(entry.length for entry in spec.tensors)
    assert stored <= total < stored * (1 if shares == 1 else 1.2) + 1


def test_block_sizes_are_ggml_s() -> None:
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
        weights, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert (block_of(name).weights, block_of(name).num_bytes) == (weights, num_bytes)
        assert num_stored_bytes(name, (3, 512)) == 3 * 512 // weights * num_bytes


def test_other_architectures_and_types_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    _write(path, "mamba")
    with pytest.raises(FleetError, match="GGUF architecture 'mamba' cannot be run") as caught:
        read_spec(path)
    assert caught.value.code == "E702"
    _write(path, "llama")
    with pytest.raises(FleetError, match=r"m.gguf: .*context_length|max_position_embeddings is missing") as caught:
        read_spec(path)
    assert caught.value.code == "E703"


def test_a_type_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(random_model("llama", head_dim=64), path, "F32")
    content = path.read_bytes()
    name = b"blk.0.ffn_down.weight"
    at = content.index(name) + len(name) + 4 + 16  # past the number of dimensions and two of them
    path.write_bytes(content[:at] + (10).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(FleetError, match=r"model.layers.0.mlp.down_proj.weight is Q2_K; only") as caught:
        read_spec(path)
    assert caught.value.code == "E705"


def test_the_planner_s_wire_keeps_the_form(llama: Path) -> None:
    spec = read_spec(llama)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)) == spec


def _write(path: Path, arch: str) -> None:
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
