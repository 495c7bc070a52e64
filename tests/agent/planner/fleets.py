"""Large invented fleets, and the public cluster of 24 machines, for planner tests and benchmarks."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import msgspec

from agent.facts.cluster import ClusterFacts
from agent.planner.machine_types import MachineType, Traffic
from agent.planner.plan import Objective, Serving
from agent.planner.problem import Problem, make_problem
from tests.agent.planner.clusters import GB, LLAMA_70B, cluster, gpu, host, link, request

MIX = (("T4", 16, 0.35), ("A10", 24, 0.2), ("L4", 24, 0.15), ("V100", 32, 0.2), ("A100", 80, 0.1))
"""Name, gigabytes and share of the hosts: many small cards and few large ones, as in mixed data centres."""
RACK_HOSTS = 32

# Data sheets of the three machine types: gigabytes, bytes per second. The A100 is the one of 40 GB.
SHEETS = {"A100": (40, 1.555e12), "L4": (24, 300e9), "T4": (16, 320e9)}
HELIX_TRAFFIC = Traffic(
    prompt_tokens=763,
    output_tokens=232,
    layer_bytes=2 * (2 * 8192 * 128 * 64 + 2 * 8192 * 128 * 8 + 3 * 8192 * 28672),
    kv_bytes=2 * 8 * 128 * 2,
)
"""A 70B model in float16, and the mean prompt and answer of the trace that its authors replay."""


def fleet_facts(num_hosts: int, *, seed: int = 1) -> ClusterFacts:
    """Hosts of one GPU each, drawn from the mix, in racks that their labels name."""
    rng = random.Random(seed)
    names, shares = [kind[:2] for kind in MIX], [kind[2] for kind in MIX]
    hosts = [
        msgspec.structs.replace(
            host(f"h{index:05}", gpu(0, name, gigabytes)), labels={"rack": f"r{index // RACK_HOSTS:04}"}
        )
        for index, (name, gigabytes) in enumerate(rng.choices(names, shares, k=num_hosts))
    ]
    return cluster(*hosts)


def grouped_facts(num_hosts: int, *, num_gpus: int = 8) -> ClusterFacts:
    """Hosts of several equal GPUs, four hosts of a kind in each rack."""
    kinds = (("H100", 80), ("A100", 80), ("L4", 24))
    hosts = []
    for index in range(num_hosts):
        rack = index // 4
        own = (gpu(number, *kinds[rack % len(kinds)]) for number in range(num_gpus))
        hosts.append(msgspec.structs.replace(host(f"h{index:05}", *own), labels={"rack": f"r{rack:04}"}))
    return cluster(*hosts)


def unequal_facts(num_hosts: int, *, seed: int = 0) -> ClusterFacts:
    """Hosts of one GPU of five kinds on three sites; every link differs, those between sites fifty times over."""
    rng = random.Random(seed)
    site = [rng.randrange(3) for _ in range(num_hosts)]
    kinds = (("RTX 4090", 24), ("RTX 3090", 24), ("L4", 24), ("A100", 40), ("T4", 16))
    hosts = [host(f"h{index:02}", gpu(0, *rng.choice(kinds))) for index in range(num_hosts)]
    links = tuple(
        link(
            f"h{a:02}",
            f"h{b:02}",
            latency_s=(100e-6 if site[a] == site[b] else 5e-3) * rng.uniform(0.5, 2),
            bytes_per_s=(1.2e9 if site[a] == site[b] else 50e6) * rng.uniform(0.5, 1),
        )
        for a, b in itertools.combinations(range(num_hosts), 2)
    )
    return cluster(*hosts, links=links)


def fleet_problem(facts: ClusterFacts) -> Problem:
    """A 70B model in 16 bits on it, for throughput."""
    serving = Serving(context=2048, batch=8, trusted_network=True)
    return make_problem(request(LLAMA_70B, facts, objective=Objective(kind="throughput"), serving=serving))


def helix_types(path: Path) -> tuple[MachineType, ...]:
    """The machine types of `helix_single24.json`."""
    data = json.loads(path.read_text())
    return tuple(
        MachineType(
            name=name,
            count=data["node_type"].count(name),
            tokens_per_s=tuple(rate for _, rate in sorted((int(k), rate) for k, rate in curve.items())),
            memory_bytes=SHEETS[name][0] * GB,
            read_bytes_per_s=SHEETS[name][1],
        )
        for name, curve in sorted(data["tokens_per_s_by_layers"].items())
    )
