"""Embeddings of both protocols with real ranks, against transformers' hidden states."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest

from tests.agent.api.conftest import ENGINE_SERVING
from tests.agent.api.engine import Served
from tests.agent.serving.tokenizer import small_tokenizer

TEXTS = [f"def wrap(text): return {index}" * (1 + index % 4) for index in range(30)]


def hidden_state(served: Served, tokens: list[int]) -> Any:
    """The last token's, after the final norm, as transformers computes it."""
    import torch

    with torch.no_grad():
        output = served.reference.model.model(torch.tensor([tokens]))
    return output.last_hidden_state[0, -1].double().numpy()


def expected(served: Served, text: str, *, dimensions: int | None = None, length: int = 10_000) -> Any:
    vector = hidden_state(served, [int(token) for token in small_tokenizer().encode(text).ids][:length])
    vector = vector[:dimensions]
    return vector / np.linalg.norm(vector)


def test_more_texts_than_slots_and_queue_are_embedded_as_transformers_does(
    served: Served, oll: ollama.Client
) -> None:
    answer = oll.embed("demo", TEXTS)
    assert len(answer.embeddings) == len(TEXTS)
    for text, embedding in zip(TEXTS, answer.embeddings, strict=True):
        assert np.abs(np.array(embedding) - expected(served, text)).max() < 1e-4
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-6)
    num_tokens = sum(len(small_tokenizer().encode(text).ids) for text in TEXTS)
    assert answer.prompt_eval_count == num_tokens
    assert answer.total_duration is not None
    assert answer.total_duration > 0


def test_a_text_has_the_same_embedding_again_and_in_both_apis(oll: ollama.Client, open_ai: openai.OpenAI) -> None:
    [first] = oll.embed("demo", TEXTS[3]).embeddings
    [again] = oll.embed("demo", [TEXTS[3]]).embeddings
    assert np.abs(np.array(first) - np.array(again)).max() < 1e-5
    answer = open_ai.embeddings.create(model="demo", input=TEXTS[3], encoding_format="float")
    assert np.abs(np.array(answer.data[0].embedding) - np.array(first)).max() < 1e-5


def test_openais_client_gets_floats_from_base64(served: Served, open_ai: openai.OpenAI) -> None:
    tokens = [int(token) for token in small_tokenizer().encode("by tokens").ids]
    answer = open_ai.embeddings.create(model="demo", input=TEXTS[:2], dimensions=16)
    assert [item.index for item in answer.data] == [0, 1]
    for text, item in zip(TEXTS, answer.data, strict=False):
        assert np.abs(np.array(item.embedding) - expected(served, text, dimensions=16)).max() < 1e-4
    assert answer.usage.prompt_tokens == sum(len(small_tokenizer().encode(text).ids) for text in TEXTS[:2])
    body = {"model": "demo", "input": [tokens], "encoding_format": "base64"}
    raw = httpx.post(f"{served.rig.base_url}/v1/embeddings", json=body, timeout=120).json()
    vector = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4")
    assert np.abs(vector - expected(served, "by tokens")).max() < 1e-4


def test_dimensions_are_cut_and_scaled_anew(served: Served, oll: ollama.Client) -> None:
    [embedding] = oll.embed("demo", TEXTS[1], dimensions=8).embeddings
    assert np.abs(np.array(embedding) - expected(served, TEXTS[1], dimensions=8)).max() < 1e-4


def test_the_older_endpoint_gives_the_vector_as_it_is(served: Served, oll: ollama.Client) -> None:
    embedding = np.array(oll.embeddings("demo", TEXTS[1]).embedding)
    tokens = [int(token) for token in small_tokenizer().encode(TEXTS[1]).ids]
    assert np.abs(embedding - hidden_state(served, tokens)).max() < 1e-4
    assert oll.embeddings("demo", "").embedding == []


def test_a_long_text_is_cut_unless_that_is_forbidden(
    served: Served, oll: ollama.Client, open_ai: openai.OpenAI
) -> None:
    text = "word " * 2100
    [embedding] = oll.embed("demo", text).embeddings
    cut = expected(served, text, length=ENGINE_SERVING.context - 1)
    assert np.abs(np.array(embedding) - cut).max() < 1e-4
    with pytest.raises(ollama.ResponseError, match="exceeds the context"):
        oll.embed("demo", text, truncate=False)
    with pytest.raises(openai.BadRequestError) as refused:
        open_ai.embeddings.create(model="demo", input=text)
    assert refused.value.code == "context_length_exceeded"


def test_embeddings_and_answers_run_side_by_side(served: Served, oll: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 24}
    alone = oll.generate("demo", "Once", raw=True, options=options).response
    stream = oll.generate("demo", "Once", raw=True, options=options, stream=True)
    pieces = [next(iter(stream)).response or ""]
    assert len(oll.embed("demo", TEXTS[:6]).embeddings) == 6
    pieces.extend(part.response or "" for part in stream)
    assert "".join(pieces) == alone
    assert served.rig.backend().running == 0


@pytest.mark.parametrize(
    "changes",
    [{"input": []}, {"input": ""}, {"input": ["x"] * 3000}, {"encoding_format": "hex"}, {"dimensions": 65}],
)
def test_a_bad_field_is_named(open_ai: openai.OpenAI, changes: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        open_ai.post("/embeddings", body={"model": "demo", "input": "x", **changes}, cast_to=object)
    assert refused.value.param == next(iter(changes))
