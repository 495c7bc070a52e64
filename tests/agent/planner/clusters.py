"""Models and clusters for planner tests: real shapes, invented hosts."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.facts.cluster import ClusterFacts, DeviceFacts, HostFacts, LinkFacts
from agent.facts.families import FAMILIES
from agent.facts.model import ModelSpec, RopeSpec
from agent.planner.layout import Place
from agent.planner.make import make_plan
from agent.planner.plan import ModelRef, Plan, Serving
from agent.planner.problem import PlanRequest

GB = 10**9


def cpu(gigabytes: float, *, read_gb_per_s: float | None = None, cores: int = 8) -> DeviceFacts:
    size = int(gigabytes * GB)
    read = None if read_gb_per_s is None else read_gb_per_s * 1e9
    return DeviceFacts(
        id="cpu", kind="cpu", name="cpu", memory_bytes=size, usable_bytes=size, cores=cores, read_bytes_per_s=read
    )


def gpu(index: int, name: str, gigabytes: float, *, read_gb_per_s: float | None = None) -> DeviceFacts:
    size = int(gigabytes * GB)
    read = None if read_gb_per_s is None else read_gb_per_s * 1e9
    return DeviceFacts(
        id=f"cuda:{index}",
        kind="cuda",
        name=name,
        memory_bytes=size,
        usable_bytes=size * 9 // 10,
        read_bytes_per_s=read,
    )


def host(name: str, *devices: DeviceFacts) -> HostFacts:
    return HostFacts(
        name=name,
        cluster_address="192.0.2.1",
        cluster_port=7000,
        devices=devices,
        memory_bytes=64 * GB,
        cpu_cores=8,
    )


def cluster(*hosts: HostFacts, links: tuple[LinkFacts, ...] = ()) -> ClusterFacts:
    return ClusterFacts(cluster="lab", hosts=tuple(sorted(hosts, key=lambda host: host.name)), links=links)


def link(source: str, target: str, *, latency_s: float, bytes_per_s: float) -> LinkFacts:
    return LinkFacts(source=source, target=target, latency_s=latency_s, bytes_per_s=bytes_per_s, is_measured=True)


def places_of(facts: ClusterFacts) -> tuple[Place, ...]:
    return tuple(Place(host=host.name, device=device) for host in facts.hosts for device in host.devices)


def model(
    *,
    name: str = "tiny",
    num_layers: int = 6,
    hidden: int = 64,
    intermediate: int = 160,
    heads: int = 8,
    kv_heads: int = 4,
    head_size: int = 8,
    vocab: int = 1000,
    max_context: int = 4096,
    is_tied: bool = False,
) -> ModelSpec:
    return ModelSpec(
        name=name,
        family=FAMILIES[0],
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        vocab_size=vocab,
        max_context=max_context,
        rms_norm_eps=1e-5,
        rope=RopeSpec(theta=1e4),
        tie_word_embeddings=is_tied,
        dtype="bfloat16",
        num_parameters=1,
        digest="d" * 64,
    )


LLAMA_1B = model(
    name="llama-1b",
    num_layers=16,
    hidden=2048,
    intermediate=8192,
    heads=32,
    kv_heads=8,
    head_size=64,
    vocab=128256,
    max_context=131072,
    is_tied=True,
)
LLAMA_70B = model(
    name="llama-70b",
    num_layers=80,
    hidden=8192,
    intermediate=28672,
    heads=64,
    kv_heads=8,
    head_size=128,
    vocab=128256,
    max_context=131072,
)

THREE_CPUS = cluster(host("a", cpu(8)), host("b", cpu(8)), host("c", cpu(16)))
MIXED_GPUS = cluster(
    *(host(f"big{i}", gpu(0, "RTX 4090", 24), gpu(1, "RTX 4090", 24)) for i in range(4)),
    *(host(f"old{i}", gpu(0, "RTX 3060", 12)) for i in range(4)),
)


def request(spec: ModelSpec, facts: ClusterFacts, **asked: Any) -> PlanRequest:
    ref = ModelRef(name=spec.name, path="/models/it", digest=spec.digest)
    return PlanRequest(name="chat", model=ref, spec=spec, facts=facts, **asked)


def plan_for(spec: ModelSpec, facts: ClusterFacts, **asked: Any) -> Plan:
    return make_plan(request(spec, facts, **asked))


LLAMA_TINY = model(
    name="llama-tiny",
    num_layers=4,
    hidden=512,
    intermediate=1024,
    heads=8,
    kv_heads=4,
    head_size=64,
    vocab=128256,
    max_context=8192,
    is_tied=True,
)
"""Guesses for the others."""


def drafting(draft: ModelSpec = LLAMA_TINY, **serving: Any) -> dict[str, Any]:
    """What of a request asks for a draft model."""
    return {
        "draft": ModelRef(name=draft.name, path="/models/draft", digest=draft.digest, source_host="c"),
        "draft_spec": draft,
        "serving": Serving(speculation="draft_model", **serving),
    }


SMALL_SERVING = Serving(context=256, batch=2, prefill_chunk=32)


MIXTRAL = msgspec.structs.replace(
    model(
        name="mixtral-8x7b",
        num_layers=32,
        hidden=4096,
        intermediate=14336,
        heads=32,
        kv_heads=8,
        head_size=128,
        vocab=32000,
        max_context=32768,
    ),
    family=next(family for family in FAMILIES if family.name == "mixtral"),
    num_experts=8,
    experts_per_token=2,
    expert_size=14336,
    normalises_experts=True,
    num_parameters=46_702_792_704,
)
MIXED_MOE = msgspec.structs.replace(
    model(name="mixed", num_layers=6, hidden=64, intermediate=160, heads=8, kv_heads=4, head_size=8),
    family=next(family for family in FAMILIES if family.name == "qwen3moe"),
    num_experts=16,
    experts_per_token=2,
    expert_size=40,
    dense_layers=(0, 3),
)
"""Layers 0 and 3 have one MLP, of another size than an expert."""
