from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import FleetError
from agent.facts.model import RopeSpec
from agent.models.spec import read_spec
from tests.agent.models.conftest import SIZES, edit_json

Models = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "family", "dtype", "head_size", "window"),
    [
        ("llama", "llama", "float32", 16, None),
        ("llama-sharded", "llama", "bfloat16", 16, None),
        ("mistral", "mistral", "float16", 16, 128),
        ("qwen2", "qwen2", "bfloat16", 16, None),
        ("qwen3", "qwen3", "float32", 32, None),
        ("gemma2", "gemma2", "float32", 16, 64),
        ("gemma3", "gemma3", "bfloat16", 16, 64),
        ("phi3", "phi3", "bfloat16", 16, None),
        ("mixtral", "mixtral", "bfloat16", 16, None),
        ("qwen3moe", "qwen3moe", "float32", 16, None),
    ],
)
def test_every_family_is_read(
    originals: dict[str, Path], name: str, family: str, dtype: str, head_size: int, window: int | None
) -> None:
    from transformers import AutoModelForCausalLM

    spec = read_spec(originals[name])
    reference = AutoModelForCausalLM.from_pretrained(originals[name])
    assert (spec.name, spec.family.name, spec.dtype) == (name, family, dtype)
    assert (spec.head_size, spec.sliding_window, spec.num_layers) == (head_size, window, 3)
    assert spec.num_parameters == reference.num_parameters()
    assert spec.tie_word_embeddings == (name in ("llama-sharded", "gemma2", "gemma3"))
    assert spec.digest == ""


def test_end_tokens_come_from_both_files(models: Models) -> None:
    path = models("qwen2")
    edit_json(path / "generation_config.json", eos_token_id=[4, 7], bos_token_id=1)
    spec = read_spec(path)
    assert spec.eos_token_ids == (3, 4, 7)
    assert spec.bos_token_id == 1


def test_older_rope_keys_are_read(models: Models) -> None:
    path = models("llama")
    edit_json(
        path / "config.json", rope_parameters=..., rope_theta=500000.0, rope_scaling={"type": "linear", "factor": 4}
    )
    assert read_spec(path).rope == RopeSpec(theta=500000.0, kind="linear", factor=4.0)
    edit_json(path / "config.json", rope_scaling=None)
    assert read_spec(path).rope == RopeSpec(theta=500000.0)


def test_newer_rope_parameters_are_read(models: Models) -> None:
    path = models("llama")
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    expected = RopeSpec(theta=9.0, kind="llama3", factor=8.0, original_context=64)
    edit_json(path / "config.json", rope_parameters={"rope_type": "llama3", "rope_theta": 9.0, **scaling})
    assert read_spec(path).rope == expected
    edit_json(
        path / "config.json", rope_parameters=..., rope_theta=9.0, rope_scaling={"rope_type": "llama3", **scaling}
    )
    assert read_spec(path).rope == expected


def test_a_head_size_that_is_not_said_follows_from_hidden_size(models: Models) -> None:
    path = models("llama")
    edit_json(path / "config.json", head_dim=...)
    assert read_spec(path).head_size == 16


def test_qwen2_without_its_window_in_use_has_none(models: Models) -> None:
    path = models("qwen2")
    edit_json(
        path / "config.json", sliding_window=128, use_sliding_window=False, max_window_layers=0, layer_types=...
    )
    assert read_spec(path).sliding_window is None


def test_qwen2_with_its_window_in_use_has_it_in_its_later_layers(models: Models) -> None:
    path = models("qwen2")
    edit_json(
        path / "config.json", sliding_window=128, use_sliding_window=True, max_window_layers=1, layer_types=...
    )
    spec = read_spec(path)
    assert [spec.window_of(layer) for layer in range(3)] == [None, 128, 128]
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    edit_json(path / "config.json", layer_types=types)
    assert read_spec(path).full_layers == (1,)


def test_an_unknown_architecture_names_the_known_ones(models: Models) -> None:
    path = models("llama")
    edit_json(path / "config.json", architectures=["GPT2LMHeadModel"])
    with pytest.raises(FleetError, match="GPT2LMHeadModel") as caught:
        read_spec(path)
    assert caught.value.code == "E702"
    assert "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM" in caught.value.hint
    assert "Gemma2ForCausalLM, Gemma3ForCausalLM, Phi3ForCausalLM, MixtralForCausalLM" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"mlp_bias": True}, "mlp_bias is not supported"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "2"}}, "factor is '2'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor of the linear rope is None"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ between layers"),
        ({"rope_parameters": ["linear"]}, "an object expected"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised weights \(gptq\)"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_key_value_heads": 3}, "4 is no multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"layer_types": ["sliding_attention"] * 3}, "no window of llama is in use"),
    ],
)
def test_what_we_do_not_do_is_refused(models: Models, changes: dict[str, Any], said: str) -> None:
    path = models("llama")
    edit_json(path / "config.json", **changes)
    with pytest.raises(FleetError, match=said) as caught:
        read_spec(path)
    assert caught.value.code == "E703"


def test_all_problems_of_a_config_are_told_at_once(models: Models) -> None:
    path = models("llama")
    edit_json(path / "config.json", mlp_bias=True, hidden_act="gelu", hidden_size=0)
    with pytest.raises(FleetError, match=r"gelu.*mlp_bias.*hidden_size is 0"):
        read_spec(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 4}, "model.layers.3.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 2}, "model.layers.2.input_layernorm.weight is unknown"),
        ({"intermediate_size": 128}, r"has shape \[96, 64\], \[128, 64\] expected"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "q_norm.weight is missing"),
    ],
)
def test_weights_that_do_not_match_the_config_are_refused(
    models: Models, changes: dict[str, Any], said: str
) -> None:
    path = models("llama")
    edit_json(path / "config.json", **changes)
    with pytest.raises(FleetError, match=said) as caught:
        read_spec(path)
    assert caught.value.code == "E705"


def test_a_bias_that_llama_has_not_is_never_ignored(models: Models) -> None:
    path = models("qwen2")
    edit_json(path / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(FleetError, match=r"k_proj\.bias is unknown to LlamaForCausalLM"):
        read_spec(path)


def test_a_dtype_that_cannot_be_run_is_refused(models: Models) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = models("llama")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float64)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(FleetError, match=r"model\.norm\.weight is F64; only F32, BF16, F16"):
        read_spec(path)


def test_norms_in_float32_do_not_change_the_model_s_dtype(models: Models) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = models("qwen2")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float32)
    save_file(tensors, path / "model.safetensors")
    assert read_spec(path).dtype == "bfloat16"


def test_a_directory_without_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"has no config\.json") as caught:
        read_spec(tmp_path)
    assert caught.value.code == "E701"


def test_a_hub_snapshot_is_called_by_its_model(models: Models, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--Small-Model" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    models("llama").rename(snapshot)
    assert read_spec(snapshot).name == "Small-Model"


def test_of_a_model_that_sees_the_language_part_is_run(tmp_path: Path) -> None:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    text = {**SIZES, "head_dim": 16, "sliding_window": 64}
    more: dict[str, Any] = {"eos_token_id": [1, 6]}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
        **more,
    )
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    assert (spec.family.name, spec.num_layers, spec.sliding_window) == ("gemma3", 3, 64)
    assert spec.num_parameters == model.model.language_model.num_parameters()
    assert {1, 6} <= set(spec.eos_token_ids)
    entries = {entry.name: entry for entry in spec.tensors}
    query = entries["model.layers.2.self_attn.q_proj.weight"]
    stored = (tmp_path / query.file).read_bytes()[query.offset : query.offset + query.length]
    expected = model.model.language_model.layers[2].self_attn.q_proj.weight
    assert torch.equal(torch.frombuffer(bytearray(stored), dtype=torch.float32).view(expected.shape), expected)
    edit_json(tmp_path / "config.json", text_config={"hidden_size": 64})
    with pytest.raises(FleetError, match=r"num_hidden_layers is missing; intermediate_size is missing$"):
        read_spec(tmp_path)
