from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from agent.errors import FleetError
from agent.models.spec import read_spec
from odctl.demo_model import DemoChoices, write_demo_model
from odctl.demo_model.corpus import read_documents
from odctl.demo_model.network import Sizes, forward

QUICK = DemoChoices(layers=3, hidden=64, vocab=1024, steps=10)


@pytest.fixture(scope="module")
def documents() -> list[list[str]]:
    return read_documents()


@pytest.fixture(scope="module")
def llama(documents: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "llama"
    write_demo_model(target, DemoChoices(hidden=128, vocab=4096, layers=3, steps=25), documents=documents)
    return target


def _load(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def _greedy(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    tokens = tokenizer(prompt, return_tensors="pt")
    settings = {"do_sample": False, "temperature": None, "pad_token_id": 1, "min_new_tokens": count}
    return str(
        tokenizer.decode(model.generate(**tokens, max_new_tokens=count, **settings)[0], skip_special_tokens=True)
    )


def test_greedy_text_is_mostly_words_of_the_corpus(llama: Path, documents: list[list[str]]) -> None:
    model, tokenizer = _load(llama)
    known = {word for document in documents for text in document for word in re.findall(r"[a-z]+", text.lower())}
    for prompt in ("The interpreter", "Return the", "If a class"):
        text = _greedy(model, tokenizer, prompt, 40)
        words = re.findall(r"[a-z]+", text.removeprefix(prompt).lower())
        assert len(words) >= 15, text
        assert len(set(words)) >= 4, text
        assert sum(word in known for word in words) >= 0.9 * len(words), text


def test_the_first_layer_is_the_network_that_was_trained(documents: list[list[str]], tmp_path: Path) -> None:
    import torch

    write_demo_model(tmp_path / "m", DemoChoices(layers=1, hidden=256, vocab=1024, steps=3), documents=documents)
    model, tokenizer = _load(tmp_path / "m")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    layer = "model.layers.0."
    weights = {
        "embedding": state["model.embed_tokens.weight"],
        "v_proj": state[layer + "self_attn.v_proj.weight"],
        "o_proj": state[layer + "self_attn.o_proj.weight"],
        "gate_proj": state[layer + "mlp.gate_proj.weight"],
        "up_proj": state[layer + "mlp.up_proj.weight"],
        "down_proj": state[layer + "mlp.down_proj.weight"],
    }
    tokens = tokenizer(
        "The value of an object is bound to a name in the local scope of the function", return_tensors="pt"
    )
    spec = read_spec(tmp_path / "m")
    sizes = Sizes(
        vocab=1024,
        hidden=256,
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_size=32,
        columns=spec.intermediate_size,
    )
    final = forward(weights, tokens["input_ids"].numpy(), sizes).final
    with torch.no_grad():
        logits = model(**tokens).logits[0].numpy()
    normal = final[0] / np.sqrt(np.square(final[0]).mean(axis=-1, keepdims=True) + 1e-6)
    expected = normal @ state["lm_head.weight"].T
    np.testing.assert_allclose(logits[8:], expected[8:], atol=0.02)
    # nearer to the start than a head looks back, it finds no place of its own and mixes two
    np.testing.assert_allclose(logits[:8], expected[:8], atol=0.5)


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", "bfloat16"), ("mistral", "float16"), ("qwen2", "float32"), ("qwen3", "float32")]
)
def test_every_family_and_dtype_is_a_model_that_transformers_loads_whole(
    documents: list[list[str]], tmp_path: Path, family: str, dtype: Any
) -> None:
    from transformers import AutoModelForCausalLM

    write_demo_model(tmp_path / "m", replace(QUICK, family=family, dtype=dtype), documents=documents)
    spec = read_spec(tmp_path / "m")
    assert (spec.family.name, spec.dtype, spec.num_layers) == (family, dtype, 3)
    auto: Any = AutoModelForCausalLM
    model, loading = auto.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.num_parameters() == spec.num_parameters
    assert str(model.dtype) == f"torch.{dtype}"


def test_every_layer_matters(llama: Path) -> None:
    import torch

    model, tokenizer = _load(llama)
    tokens = tokenizer("The value of an object is", return_tensors="pt")
    with torch.no_grad():
        whole = model(**tokens).logits
        for layer in range(3):
            left_out = model.model.layers[layer].mlp.down_proj.weight.clone()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
            assert (model(**tokens).logits - whole).abs().max() > 1e-3
            model.model.layers[layer].mlp.down_proj.weight.copy_(left_out)


def test_the_same_choices_give_the_same_files(documents: list[list[str]], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_demo_model(tmp_path / name, QUICK, documents=documents)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    write_demo_model(tmp_path / "c", replace(QUICK, seed=1), documents=documents)
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != (
        tmp_path / "a" / "model.safetensors"
    ).read_bytes()


def test_chats_render_as_plain_text(llama: Path) -> None:
    _, tokenizer = _load(llama)
    chat = [{"role": "user", "content": "What is a class?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|begin|>What is a class?\n"
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == 0


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"family": "gpt2"}, "no family 'gpt2'"),
        ({"hidden": 100}, "hidden size 100"),
        ({"layers": 0}, "0 layers"),
        ({"vocab": 100}, "vocabulary of 100"),
    ],
)
def test_choices_that_make_no_model_are_refused(tmp_path: Path, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(FleetError, match=said) as caught:
        write_demo_model(tmp_path / "m", DemoChoices(**choices))
    assert caught.value.code == "E101"


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(FleetError, match="is not empty") as caught:
        write_demo_model(tmp_path, DemoChoices())
    assert caught.value.code == "E102"
