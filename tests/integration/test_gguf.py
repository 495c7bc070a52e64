"""A model of Ollama's store, four bits a weight, in two shards on two hosts: the answers of the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from agent.api.serving_files import load_serving_files
from agent.models.files import HEADER_FILE
from agent.models.spec import read_spec
from agent.planner.file import plan_from_toml
from agent.planner.shards import whole_extent
from odctl.result import ExitCode
from tests.agent.engine.threads import run_threads
from tests.gguf_files import ollama_store, random_model, write_gguf
from tests.integration.cluster import Cluster, free_listen, open_cluster

MODEL = "tiny:4bit"
COUNT = 16
LAYERS = {
    "params": b'{"temperature": 0, "repeat_penalty": 1.0, "num_predict": %d}' % COUNT,
    "system": b"Be brief.",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(num_hosts=2) as cluster:
        yield cluster


@pytest.fixture
def manifest(cluster: Cluster, tmp_path: Path) -> Path:
    """Of a model that only h1 has, in a store as Ollama leaves it."""
    write_gguf(random_model("llama", head_dim=64), tmp_path / "tiny.gguf", "Q4_K")
    store = cluster.hosts["h1"].prefix / "var" / "models" / "ollama"
    return ollama_store(store, "tiny", tmp_path / "tiny.gguf", LAYERS, tag="4bit")


def answer_unsharded(manifest: Path, folder: Path, message: str) -> tuple[int, str]:
    """Tokens of the prompt, and the answer of one rank that reads the model itself."""
    spec = read_spec(manifest)
    tokens, chat = load_serving_files(manifest, eos_token_ids=spec.eos_token_ids, now=lambda: datetime.now(tz=UTC))
    prompt = list(tokens.encode(chat.render([{"role": "user", "content": message}]), adds_special=False))
    with run_threads(spec, [(whole_extent(spec),)], model_dir=manifest, folder=folder) as replica:
        made = replica.generate({0: prompt}, COUNT, chunk=64)[0]
    ends = [place for place, token in enumerate(made) if token in tokens.eos_token_ids]
    return len(prompt), tokens.decode(made[: ends[0]] if ends else made)


def test_a_quantised_model_of_ollama_s_store_is_served_in_shards(
    cluster: Cluster, manifest: Path, tmp_path: Path
) -> None:
    listed = cluster.must("models")["models"]
    assert [(held["host"], held["name"], held["quantisation"]) for held in listed] == [("h1", MODEL, "Q4_K")]

    listen, file = free_listen(), tmp_path / "plan.toml"
    shape = ("--dtype", "float32", "--tensor", "2", "--context", "256")
    cluster.must("plan", MODEL, "-o", str(file), "--listen", listen, "--controller", "h1", *shape)
    plan = plan_from_toml(file.read_text(), file=str(file))
    assert any("its file is Q4_K" in line for line in plan.why)
    cluster.apply(file)

    body = {"model": MODEL, "messages": [{"role": "user", "content": "Why is that so?"}], "stream": False}
    reply = httpx.post(f"http://{listen}/api/chat", json=body, timeout=60.0).json()
    num_prompt_tokens, text = answer_unsharded(manifest, tmp_path, "Why is that so?")
    assert reply["message"]["content"] == text
    assert reply["prompt_eval_count"] == num_prompt_tokens
    assert reply["eval_count"] == COUNT or reply["done_reason"] == "stop", "the store's params count"

    # h2 has its slices as blocks and the small files, and of the weights nothing else
    (fetched,) = (cluster.hosts["h2"].prefix / "var" / "models").glob("*/manifest.json")
    names = {path.name for path in fetched.parent.iterdir()}
    assert names == {"manifest.json", HEADER_FILE, "ollama_params", "ollama_system", "shards"}
    (shard,) = (fetched.parent / "shards").iterdir()
    assert shard.stat().st_size < read_spec(manifest).num_parameters, "under a byte for every weight"
    assert cluster.odctl("destroy", MODEL, "--yes").exit_code == ExitCode.OK
