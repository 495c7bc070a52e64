"""Public measured runs of tensor-parallel deployments as choices to be made: contexts, arms, predicted, measured.

`silicon_sample.csv` (ai-dynamo/aiconfigurator, Apache-2.0) has measured times per token of H100 and B200 systems.
Runs that differ in nothing but their tensor-parallel size are one context with several arms. Predictions are by the
planner's own formula and constants, none of them fitted here.
"""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import msgspec

from agent.facts.cluster import LinkFacts
from agent.planner.cost import all_reduce_s
from agent.planner.learning.workload import Context
from agent.planner.rates import EFFICIENCY, GPUS


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """A model's sizes, as its published config.json states them. `kv_elements` are per position and layer."""

    layers: int
    hidden: int
    attention_weights: int
    """Per layer."""
    kv_elements: int
    query_width: int
    """Query heads times their size, for attention's arithmetic."""
    vocab: int
    columns: int
    """MLP columns of a dense layer."""
    experts: int = 0
    experts_per_token: int = 0
    expert_columns: int = 0
    shared_experts: int = 0
    dense_layers: int = 0


def _grouped(hidden: int, heads: int, kv_heads: int, size: int) -> dict[str, int]:
    return {
        "hidden": hidden,
        "attention_weights": hidden * size * 2 * (heads + kv_heads),
        "kv_elements": 2 * kv_heads * size,
        "query_width": heads * size,
    }


def _latent(hidden: int, heads: int, query_rank: int) -> dict[str, int]:
    """DeepSeek's multi-head latent attention: 512 latent and 64 rotary elements a position."""
    weights = hidden * (query_rank + 576) + query_rank * heads * 192 + 512 * heads * 256 + heads * 128 * hidden
    return {"hidden": hidden, "attention_weights": weights, "kv_elements": 576, "query_width": heads * 576}


_DEEPSEEK = Architecture(
    layers=61,
    vocab=129280,
    columns=18432,
    experts=256,
    experts_per_token=8,
    expert_columns=2048,
    shared_experts=1,
    dense_layers=3,
    **_latent(7168, 128, 1536),
)
ARCHITECTURES = {
    "meta-llama/Llama-3.1-8B-Instruct": Architecture(
        layers=32, vocab=128256, columns=14336, **_grouped(4096, 32, 8, 128)
    ),
    "meta-llama/Llama-3.1-70B": Architecture(layers=80, vocab=128256, columns=28672, **_grouped(8192, 64, 8, 128)),
    "Qwen/Qwen3-32B": Architecture(layers=64, vocab=151936, columns=25600, **_grouped(5120, 64, 8, 128)),
    "Qwen/Qwen3-235B-A22B-FP8": Architecture(
        layers=94,
        vocab=151936,
        columns=12288,
        experts=128,
        experts_per_token=8,
        expert_columns=1536,
        **_grouped(4096, 64, 4, 128),
    ),
    "deepseek-ai/DeepSeek-R1": _DEEPSEEK,
    "deepseek-ai/DeepSeek-V3": _DEEPSEEK,
    "moonshotai/Kimi-K2.5": Architecture(
        layers=61,
        vocab=163840,
        columns=18432,
        experts=384,
        experts_per_token=8,
        expert_columns=2048,
        shared_experts=1,
        dense_layers=1,
        **_latent(7168, 64, 1536),
    ),
    "MiniMaxAI/MiniMax-M2.5": Architecture(
        layers=62,
        vocab=200064,
        columns=1536,
        experts=256,
        experts_per_token=8,
        expert_columns=1536,
        **_grouped(3072, 48, 8, 128),
    ),
    "openai/gpt-oss-120b": Architecture(
        layers=36,
        vocab=201088,
        columns=2880,
        experts=128,
        experts_per_token=4,
        expert_columns=2880,
        **_grouped(2880, 64, 8, 64),
    ),
}
SYSTEMS = {"h100_sxm": "H100", "b200_sxm": "B200"}
WEIGHT_BYTES = {"fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625, "int4_wo": 0.5625, "": 2.0}
SPEED_UP = {"fp8": 2.0, "fp8_block": 2.0, "nvfp4": 4.0, "int4_wo": 1.0, "": 1.0}
"""Arithmetic against 16-bit."""
NVLINK = LinkFacts(source="gpu", target="gpu", latency_s=7.6e-6, bytes_per_s=358e9)


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    size: int
    """Tensor-parallel size."""
    measured_s: float
    """Seconds per token after the first, the median of the runs that there are."""
    predicted_s: float
    num_all_reduces: int
    all_reduce_bytes: float


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One context with the arms that were measured in it."""

    context: Context
    model: str
    arms: tuple[Arm, ...]


def read_cases(path: Path) -> list[Case]:
    """All contexts in which two tensor-parallel sizes or more were measured on one replica, in the file's order."""
    keys = ("backend", "backend_version", "model_path", "system", "gemm_quant_mode", "isl", "osl", "batch_size")
    found: dict[tuple[str, ...], dict[int, list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            is_plain = row["attention_dp_size"] in ("", "1") and int(row["tp_size"]) <= 8
            if is_plain and row["model_path"] in ARCHITECTURES and row["silicon_tpot_ms"]:
                arms = found.setdefault(tuple(row[key] for key in keys), {})
                arms.setdefault(int(row["tp_size"]), []).append(float(row["silicon_tpot_ms"]) / 1e3)
    cases = []
    for (_, _, model, system, mode, prompt, output, batch), arms in found.items():
        if len(arms) < 2:
            continue
        context = Context(
            prompt_tokens=float(prompt),
            output_tokens=float(output),
            batch=float(batch),
            num_layers=ARCHITECTURES[model].layers,
            weight_bytes=_active_bytes(ARCHITECTURES[model], mode),
            has_experts=ARCHITECTURES[model].experts > 0,
            link="host",
        )
        cases.append(
            Case(
                context=context,
                model=model,
                arms=tuple(
                    _arm(context, ARCHITECTURES[model], system, mode, size, statistics.median(seconds))
                    for size, seconds in sorted(arms.items())
                ),
            )
        )
    return cases


def _arm(context: Context, model: Architecture, system: str, mode: str, size: int, measured_s: float) -> Arm:
    reduce_bytes = context.batch * model.hidden * 2
    return Arm(
        size=size,
        measured_s=measured_s,
        predicted_s=predict_time_per_token_s(context, model, system, mode, size),
        num_all_reduces=2 * model.layers,
        all_reduce_bytes=reduce_bytes,
    )


def predict_time_per_token_s(context: Context, model: Architecture, system: str, mode: str, size: int) -> float:
    """Seconds per token: the roofline of a decode step over `size` devices, sums, and a share of the prefills."""
    nominal, efficiency = GPUS[SYSTEMS[system]], EFFICIENCY["cuda"]
    read_per_s = nominal.read_bytes_per_s * efficiency.memory * size
    flops_per_s = nominal.flops_per_s * SPEED_UP[mode] * size
    batch, positions = context.batch, context.prompt_tokens + context.output_tokens / 2
    read_weights = _weights(model, _covered(model, batch))
    used_weights = _weights(model, model.experts_per_token)
    read = model.layers * (read_weights * WEIGHT_BYTES[mode] + batch * positions * model.kv_elements * 2)
    flops = batch * model.layers * (2 * used_weights + 4 * positions * model.query_width)
    head = model.vocab * model.hidden * 2 / read_per_s
    step_s = max(read / read_per_s, flops / (flops_per_s * efficiency.decode_flops)) + head
    reduce_s = all_reduce_s(NVLINK, int(batch * model.hidden * 2), size, carrier="nccl")
    step_s += model.layers * (efficiency.layer_overhead_s + 2 * reduce_s)
    prompt = context.prompt_tokens
    prefill_flops = prompt * model.layers * (2 * used_weights + 2 * prompt * model.query_width)
    prefill_s = prefill_flops / (flops_per_s * efficiency.prefill_flops)
    # While a sequence decodes, every other of the batch is prefilled once.
    return step_s + batch * prefill_s / context.output_tokens


def _weights(model: Architecture, num_experts: float) -> float:
    """Matrix elements of a layer that are used, layers with experts and without averaged."""
    dense = 3 * model.hidden * model.columns
    if not model.experts:
        return model.attention_weights + dense
    sparse = model.hidden * (model.experts + 3 * model.expert_columns * (num_experts + model.shared_experts))
    share = model.dense_layers / model.layers
    return model.attention_weights + (1 - share) * sparse + share * dense


def _active_bytes(model: Architecture, mode: str) -> float:
    layers = model.layers * _weights(model, model.experts_per_token) * WEIGHT_BYTES[mode]
    return layers + 2 * model.vocab * model.hidden * 2


def _covered(model: Architecture, rows: float) -> float:
    if not model.experts:
        return 0.0
    return model.experts * (1 - math.pow(1 - model.experts_per_token / model.experts, rows))
