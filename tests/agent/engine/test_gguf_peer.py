"""GGUF files that llama.cpp quantised, against what llama.cpp itself answers. Needs the peers of `make bench`.

llama.cpp rounds activations to eight bits (or to bfloat16) before it multiplies with such weights, and we do not.
So every file is asked twice: as it is, where logits may differ by that rounding and tokens where its two best are
nearer than that; and with its weights turned back to float32 by llama.cpp's own tool, where all must be equal.
"""

from __future__ import annotations

import random
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.models.gguf_header import read_gguf_metadata
from agent.models.spec import read_spec
from agent.serving.gguf_tokens import gguf_tokens
from tests.agent.engine.models import stage
from tests.agent.engine.test_gguf_model import FAMILIES
from tests.agent.engine.threads import Stages, run_threads
from tests.benchmarks.peers import the_peers
from tests.gguf_files import ROPE_LLAMA3, SIZES, random_model, write_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not the_peers().is_built(), reason="llama.cpp is not built: `make bench` does it"),
]
PROMPT = random.Random(11).choices(range(SIZES["vocab_size"]), k=24)
COUNT = 32
QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K")
ROUNDED = 0.08
"""Of the largest logit: what rounded activations make of the logits of these models, at most."""
EXACT = 5e-4
"""Likewise of float32 arithmetic in another order; llama.cpp's GELU is a table of float16."""


def quantised(source: Path, quantisation: str) -> Path:
    """The file as llama.cpp's own tool writes it in this type."""
    target = source.with_name(f"{source.stem}-{quantisation}.gguf")
    tool = str(the_peers().tool("llama-quantize"))
    command = [tool, "--allow-requantize", str(source), str(target), quantisation, "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return target


def ask_llama_cpp(path: Path, prompt: list[int]) -> tuple[torch.Tensor, list[int]]:
    script, out = Path(__file__).with_name("llama_cpp_answers.py"), path.with_suffix(".npz")
    tokens = [str(token) for token in prompt]
    command = [str(the_peers().python), str(script), str(path), str(out), str(COUNT), *tokens]
    subprocess.run(command, check=True, capture_output=True, timeout=150)
    answers = np.load(out)
    return torch.from_numpy(answers["logits"]), [int(token) for token in answers["greedy"]]


def hold_to_llama_cpp(path: Path, folder: Path, *, is_rounded_alike: bool = True) -> None:
    """Two stages, the second in two shards. Rounding may send a token to other experts: then it proves nothing."""
    spec = read_spec(path)
    half = spec.num_layers // 2
    stages: Stages = [stage(spec, (0, half)), stage(spec, (half, spec.num_layers), (1, 1))]
    answers = {EXACT: ask_llama_cpp(quantised(path, "F32"), PROMPT)}
    if is_rounded_alike:
        answers[ROUNDED] = ask_llama_cpp(path, PROMPT)
    with run_threads(spec, stages, model_dir=path, folder=folder) as replica:
        for tolerance, (theirs, greedy) in answers.items():
            scale = float(theirs.abs().max())
            ours = replica.logits([*PROMPT, *greedy], [1] * (len(PROMPT) + COUNT))
            assert float((ours[: len(PROMPT)] - theirs).abs().max()) < tolerance * scale
            for row, token in zip(ours[len(PROMPT) - 1 :], greedy, strict=False):
                # how far behind our best the token is that llama.cpp took: 0 where we take the same
                assert float(row.max() - row[token]) < tolerance * scale


@cache
def source(folder: Path) -> Path:
    path = folder / "llama.gguf"
    model = random_model("llama", head_dim=64, rope_parameters=ROPE_LLAMA3, initializer_range=0.1)
    write_gguf(model, path, "F32")
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peer")


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_every_quantisation_answers_as_llama_cpp_does(quantisation: str, shared: Path, tmp_path: Path) -> None:
    path = source(shared)
    hold_to_llama_cpp(path if quantisation == "F32" else quantised(path, quantisation), tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_llama_cpp_does(name: str, tmp_path: Path) -> None:
    family, choices = FAMILIES[name]
    path = tmp_path / f"{name}.gguf"
    write_gguf(random_model(family, **{**choices, "initializer_range": 0.1}), path, "F32")
    hold_to_llama_cpp(path, tmp_path)
    hold_to_llama_cpp(quantised(path, "Q4_K_M"), tmp_path, is_rounded_alike="num_experts_per_tok" not in choices)


VOCABULARIES = ("llama-bpe", "llama-spm", "phi-3", "qwen2", "gpt-2", "command-r", "starcoder", "refact")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_real_vocabularies_give_llama_cpp_s_own_ids(name: str) -> None:
    """llama.cpp's sources bring the vocabularies of real models with texts and the ids it expects of them."""
    path = the_peers().source / "vendor" / "llama.cpp" / "models" / f"ggml-vocab-{name}.gguf"
    tokens: Any = gguf_tokens(read_gguf_metadata(path))
    texts = path.with_name(path.name + ".inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(texts) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert list(tokens.encode(text, adds_special=False)) == [int(token) for token in ids.split()], text
