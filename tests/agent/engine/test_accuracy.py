"""Perplexity is transformers' own, quantisation costs what it costs, and a model that does not fit is refused."""

from __future__ import annotations

import email.message
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from agent.engine import accuracy
from agent.engine.accuracy import measure
from agent.engine.held_text import HELD_TEXT
from agent.errors import ErrorDetail, FleetError
from agent.facts.model import Dtype, Quantisation
from agent.models.spec import read_spec
from agent.serving.tokens import ModelTokens
from agent.wire.accuracy import AccuracyReport, CheckConfig
from odctl.demo_model import DemoChoices, write_demo_model


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has learnt a little."""
    path = tmp_path_factory.mktemp("models") / "speaker"
    documents = [inspect.getsource(module).split("\n\n") for module in (textwrap, email.message, inspect)]
    choices = DemoChoices(layers=2, hidden=128, vocab=512, steps=20)
    write_demo_model(path, choices, documents=documents)
    return path


def config(path: Path, *, dtype: Dtype = "float32", quantisations: tuple[Quantisation, ...] = ()) -> CheckConfig:
    return CheckConfig(
        host="h1",
        model=read_spec(path),
        model_dir=str(path),
        quantisations=quantisations,
        dtype=dtype,
        threads=1,
        limit_s=120,
    )


def reference_perplexity(path: Path) -> float:
    """By transformers, window by window."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path)
    encoded = ModelTokens.load(path).encode(HELD_TEXT.replace("\n", " "), adds_special=True)
    tokens = list(encoded)[: accuracy.MAX_TOKENS]
    losses = []
    with torch.inference_mode():
        for begin in range(0, len(tokens), accuracy.WINDOW_TOKENS):
            window = torch.tensor([tokens[begin : begin + accuracy.WINDOW_TOKENS]])
            log_probs = model(window).logits[0, :-1].log_softmax(-1)
            losses.append(-log_probs.gather(1, window[0, 1:, None])[:, 0])
    return float(torch.cat(losses).mean().exp())


def test_the_plain_model_has_the_perplexity_of_transformers(speaker: Path) -> None:
    report = measure(config(speaker))
    (plain,) = report.precisions
    assert plain.perplexity == pytest.approx(reference_perplexity(speaker), rel=1e-3)
    assert plain.perplexity < 0.5 * read_spec(speaker).vocab_size, "it has learnt something"
    assert (plain.top1_agreement, plain.mean_kl) == (1.0, 0.0)


def test_fewer_bits_cost_more(speaker: Path) -> None:
    report = measure(config(speaker, dtype="bfloat16", quantisations=("int8", "int4", "fp8")))
    by_name = {precision.quantisation: precision for precision in report.precisions}
    plain, int8, int4, fp8 = (by_name[name] for name in ("none", "int8", "int4", "fp8"))
    assert plain.weight_bytes > fp8.weight_bytes == int8.weight_bytes > int4.weight_bytes
    assert 0 < int8.mean_kl < int4.mean_kl
    assert 0 < fp8.mean_kl < int4.mean_kl
    assert int8.mean_kl < 0.02
    assert int8.top1_agreement > 0.8  # it has learnt little: many tokens are nearly as likely as the likeliest
    assert int8.perplexity == pytest.approx(plain.perplexity, rel=0.02)
    assert int4.perplexity == pytest.approx(plain.perplexity, rel=0.5)


def test_the_process_answers_on_its_standard_output(speaker: Path) -> None:
    asked = config(speaker, quantisations=("int8",))
    argv = [sys.executable, "-m", "agent.engine", "check"]
    done = subprocess.run(argv, input=msgspec.json.encode(asked), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=AccuracyReport)
    assert [precision.quantisation for precision in report.precisions] == ["none", "int8"]
    gone = msgspec.structs.replace(asked, model_dir="/nowhere")
    failed = subprocess.run(argv, input=msgspec.json.encode(gone), capture_output=True, timeout=120, check=False)
    assert failed.returncode == 1
    assert msgspec.json.decode(failed.stdout, type=ErrorDetail).code == "E710"


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    speaker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.engine.memory._available_host_bytes", lambda: 1000)
    with pytest.raises(FleetError, match=r"cannot be checked on h1.* GB are free") as caught:
        measure(config(speaker))
    assert caught.value.code == "E804"
    assert "--host" in caught.value.hint
