"""Planned bytes against what real rank processes hold: preview equals result, for memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers

from agent.facts.model import Quantisation
from agent.models.spec import read_spec
from agent.planner.layout import extent_of
from agent.planner.memory import CPU_RUNTIME_BYTES
from agent.planner.plan import Plan, Serving
from agent.wire.rank import DraftConfig, GetStatus, SequenceSlice
from tests.agent.engine.certificates import Authority
from tests.agent.engine.processes import ProcessRank, ProcessReplica, link, start_ranks
from tests.agent.engine.rendezvous import serve_rendezvous
from tests.agent.engine.threads import plan_links, rank_config
from tests.agent.planner.clusters import cluster, cpu, drafting, host, plan_for

SERVING = Serving(context=512, batch=4, dtype="bfloat16", prefill_chunk=128)
"""Small: a processor without bfloat16 instructions takes milliseconds a token."""
SHAPE: dict[str, Any] = {
    "vocab_size": 16000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: unix sockets have 107 bytes for theirs."""
    path = Path(tempfile.mkdtemp(prefix="odr-"))
    yield path
    shutil.rmtree(path)


def peak_resident_bytes(rank: ProcessRank) -> int:
    status = Path(f"/proc/{rank.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def fill_contexts(replica: ProcessReplica, *, num_guesses: int) -> None:
    """Prefill every slot up to its last positions in chunks, then decode all of them together."""
    end = SERVING.context - 1 - num_guesses
    for slot in range(SERVING.batch):
        for start in range(0, end, SERVING.prefill_chunk):
            count = min(SERVING.prefill_chunk, end - start)
            tokens = [(7 * position + slot) % SHAPE["vocab_size"] for position in range(start, start + count)]
            piece = SequenceSlice(slot=slot, start=start, tokens=tokens, samples=True)
            assert len(replica.step([piece])) == 1
    decodes = [
        SequenceSlice(slot=slot, start=end, tokens=[slot], samples=True, guesses_wanted=num_guesses)
        for slot in range(SERVING.batch)
    ]
    assert len(replica.step(decodes)) == SERVING.batch


def run_plan(
    plan: Plan, model_dir: Path, folder: Path, *, draft_dir: Path | None
) -> dict[str, tuple[int, int, int]]:
    """Run a plan's ranks through their largest steps: weights, KV cache and peak resident bytes by host."""
    # shards are kept under their model's digest; any will do for a model of our own
    spec = msgspec.structs.replace(read_spec(model_dir), digest="0" * 64)
    tls = Authority(folder).leaf("leaf")
    stages = [
        tuple(extent_of(spec, stage.layers, shard) for shard in stage.shards) for stage in plan.replicas[0].stages
    ]
    configs = [
        msgspec.structs.replace(
            rank_config(
                spec,
                extent,
                folder=folder,
                model_dir=model_dir,
                stage=s,
                tensor_index=t,
                dtype=SERVING.dtype,
                context=SERVING.context,
                batch=SERVING.batch,
            ),
            prefill_chunk=SERVING.prefill_chunk,
            quantisation=plan.serving.quantisation,
            cache_dir=str(folder / "packed"),
            draft=(
                DraftConfig(
                    model=msgspec.structs.replace(read_spec(draft_dir), digest="1" * 64),
                    model_dir=str(draft_dir),
                    shard_file="",
                )
                if draft_dir is not None and extent.is_last_stage and t == 0
                else None
            ),
        )
        for s, extents in enumerate(stages)
        for t, extent in enumerate(extents)
    ]
    hosts = [shard.host for stage in plan.replicas[0].stages for shard in stage.shards]
    leader = f"r0s{len(stages) - 1}t0"
    with serve_rendezvous(folder / "agent.sock"), start_ranks(configs, folder) as ranks:
        link(ranks, plan_links(stages, generation=1))
        with ProcessReplica(ranks, tls, generation=1, leader=leader) as replica:
            fill_contexts(replica, num_guesses=0 if draft_dir is None else plan.serving.max_drafts)
        held = {}
        for name, rank in zip(hosts, ranks, strict=True):
            status = rank.ask(GetStatus())
            held[name] = (status.weight_bytes, status.kv_cache_bytes, peak_resident_bytes(rank))
    return held


@pytest.mark.parametrize(
    ("quantisation", "has_draft"),
    [
        pytest.param("none", False, marks=pytest.mark.slow),  # all of it is in the next one, too
        ("none", True),
        ("int8", False),
        ("int8", True),
    ],
)
def test_ranks_hold_the_planned_bytes_and_stay_within_the_planned_memory(
    quantisation: Quantisation, has_draft: bool, folder: Path
) -> None:
    """A pipeline stage and a tensor-parallel group, at full batch and full context, packed shards mapped."""
    torch.manual_seed(0)
    model_dir = folder / "model"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, dtype="bfloat16")).save_pretrained(model_dir)
    facts = cluster(
        host("a", cpu(4, read_gb_per_s=10)),
        host("b", cpu(4, read_gb_per_s=30)),
        host("c", cpu(4, read_gb_per_s=10)),
    )
    serving = msgspec.structs.replace(SERVING, quantisation=quantisation)
    asked: dict[str, Any] = {"serving": serving}
    draft_dir = None
    if has_draft:
        draft_dir = folder / "draft"
        shape = SHAPE | {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512}
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, dtype="bfloat16")).save_pretrained(
            draft_dir
        )
        asked = drafting(read_spec(draft_dir))
        asked["serving"] = msgspec.structs.replace(serving, speculation="draft_model")
    plan = plan_for(read_spec(model_dir), facts, tensor_parallel_sizes=(1, 2), **asked)
    held = run_plan(plan, model_dir, folder, draft_dir=draft_dir)
    for stage in plan.replicas[0].stages:
        for shard in stage.shards:
            weights, kv_cache, peak = held[shard.host]
            assert weights == shard.bytes.weights
            assert kv_cache == shard.bytes.kv_cache
            assert peak <= shard.bytes.total, f"{shard.host}: {peak / 1e6:.0f} of {shard.bytes.total / 1e6:.0f} MB"
            assert peak >= shard.bytes.total - CPU_RUNTIME_BYTES
