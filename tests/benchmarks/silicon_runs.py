"""Public measured deployments as the cost model sees them: architectures, and where each run's seconds should go.

`silicon_sample.csv` (ai-dynamo/aiconfigurator, Apache-2.0): times per token of H100 and B200 systems under vLLM,
SGLang and TensorRT-LLM. Sizes are those of the models' published config.json.
"""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec

from agent.planner.calibration import scale_parts, sum_parts
from agent.planner.cost import expert_coverage
from agent.planner.memory import grouped_kv_elements, latent_kv_elements
from agent.planner.rates import EFFICIENCY, GPUS, Efficiency

REDUCE_S = 12e-6
"""Beside its bytes, of one all-reduce (the published fit)."""
EXPERT_LAUNCH_S = 10e-6
"""Routing and grouping a layer's tokens by expert: a few launches of 3 us."""
STEP_S = 100e-6
"""Of these servers, once a step: scheduling and sampling beside the GPU's work."""
NVLINK_BYTES_PER_S = {"h100_sxm": 300e9, "b200_sxm": 600e9}
"""Bus bandwidth that all-reduces reach: 282 to 380 GB/s were measured on H100, and NVLink 5 has twice the rate."""
CHUNK_TOKENS = 4096
"""Prompt tokens of one prefill step, which reads the weights once; these servers' defaults are 2048 to 8192."""

SYSTEMS = {"h100_sxm": "H100", "b200_sxm": "B200"}
WEIGHT_BYTES = {"fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625, "int4_wo": 0.5625, "": 2.0}
SPEED_UP = {
    "h100_sxm": {"fp8": 2.0, "fp8_block": 2.0},
    "b200_sxm": {"fp8": 2.0, "fp8_block": 2.0, "nvfp4": 4.0},
}
"""Arithmetic against 16-bit, where a system has it."""


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    layers: int
    hidden: int
    attention: int
    """Matrix elements of a layer's attention."""
    kv_elements: int
    """Per position and layer."""
    kv_shares: int
    """Parts into which tensor parallelism can cut them: KV heads; 1 for latent attention, held by every rank."""
    query_width: int
    """Elements that a position's attention multiplies, averaged over scores and values."""
    vocab: int
    columns: int = 0
    """MLP columns of a dense layer."""
    experts: int = 0
    experts_per_token: int = 0
    expert_columns: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    window: int | None = None
    """Positions that all but `full_share` of the layers attend to (0: linear attention)."""
    full_share: float = 1.0

    @property
    def sparse_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    def positions(self, context: float) -> float:
        if self.window is None:
            return context
        return self.full_share * context + (1 - self.full_share) * min(context, self.window)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One row that can be predicted."""

    id: str
    model: str
    system: str
    backend: str
    version: str
    dense_mode: str
    expert_mode: str
    tensor_parallel_size: int
    expert_parallel_size: int
    prompt_tokens: int
    output_tokens: int
    batch: int
    measured_s: float
    """Seconds per token after the first."""

    @property
    def name(self) -> str:
        """The model without its owner."""
        return self.model.rpartition("/")[2]


def _grouped(hidden: int, heads: int, kv_heads: int, size: int) -> dict[str, int]:
    return {
        "hidden": hidden,
        "attention": hidden * size * 2 * (heads + kv_heads),
        "kv_elements": grouped_kv_elements(kv_heads, size),
        "kv_shares": kv_heads,
        "query_width": heads * size,
    }


def _latent(hidden: int, heads: int, query_rank: int, plain: int, value: int) -> dict[str, int]:
    """Multi-head latent attention of rank 512 with 64 rotary elements (DeepSeek-V2, section 2.1)."""
    elements = latent_kv_elements(512, 64)
    return {
        "hidden": hidden,
        "attention": hidden * (query_rank + elements)
        + query_rank * heads * (plain + 64)
        + 512 * heads * (plain + value)
        + heads * value * hidden,
        "kv_elements": elements,
        "kv_shares": 1,
        "query_width": heads * (elements + 512) // 2,
    }


def _experts(count: int, chosen: int, columns: int, *, shared: int = 0, dense: int = 0) -> dict[str, int]:
    return {
        "experts": count,
        "experts_per_token": chosen,
        "expert_columns": columns,
        "shared_experts": shared,
        "dense_layers": dense,
    }


_DEEPSEEK = Architecture(
    layers=61,
    vocab=129280,
    columns=18432,
    **_latent(7168, 128, 1536, 128, 128),
    **_experts(256, 8, 2048, shared=1, dense=3),
)
_QWEN_32B = Architecture(layers=64, vocab=151936, columns=25600, **_grouped(5120, 64, 8, 128))
ARCHITECTURES = {
    "meta-llama/Llama-3.1-70B": Architecture(layers=80, vocab=128256, columns=28672, **_grouped(8192, 64, 8, 128)),
    "Qwen/Qwen3-32B": _QWEN_32B,
    "nvidia/Qwen3-32B-NVFP4": _QWEN_32B,
    "Qwen/Qwen3-235B-A22B-FP8": Architecture(
        layers=94, vocab=151936, **_grouped(4096, 64, 4, 128), **_experts(128, 8, 1536)
    ),
    "deepseek-ai/DeepSeek-V3": _DEEPSEEK,
    "deepseek-ai/DeepSeek-R1": _DEEPSEEK,
    "nvidia/DeepSeek-R1-NVFP4": _DEEPSEEK,
    "nvidia/DeepSeek-V3.1-NVFP4": _DEEPSEEK,
    "moonshotai/Kimi-K2.5": Architecture(
        layers=61,
        vocab=163840,
        columns=18432,
        **_latent(7168, 64, 1536, 128, 128),
        **_experts(384, 8, 2048, shared=1, dense=1),
    ),
    "MiniMaxAI/MiniMax-M2.5": Architecture(
        layers=62, vocab=200064, **_grouped(3072, 48, 8, 128), **_experts(256, 8, 1536)
    ),
    "Qwen/Qwen3.5-397B-A17B": Architecture(
        layers=60,
        vocab=248320,
        window=0,
        full_share=0.25,
        **_grouped(4096, 32, 2, 256),
        **_experts(512, 10, 1024, shared=1),
    ),
    "openai/gpt-oss-120b": Architecture(
        layers=36,
        vocab=201088,
        window=128,
        full_share=0.5,
        **_grouped(2880, 64, 8, 64),
        **_experts(128, 4, 2880),
    ),
    "zhipuai/GLM-5": Architecture(
        layers=78,
        vocab=154880,
        columns=12288,
        window=2048,
        full_share=0.0,
        **_latent(6144, 64, 2048, 192, 256),
        **_experts(256, 8, 2048, shared=1, dense=3),
    ),
}


class SiliconRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that can be predicted, and how many cannot, by reason."""

    runs: tuple[Run, ...]
    left_out: dict[str, int]


def read_runs(path: Path) -> SiliconRuns:
    """Every row of the file that says what was measured."""
    runs, left_out = [], dict.fromkeys(("no precision stated", "several copies of the attention", "too fast"), 0)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["precision"]:
                left_out["no precision stated"] += 1
                continue
            if row["attention_dp_size"] not in ("", "1") or int(row["tp_size"]) > 8:
                left_out["several copies of the attention"] += 1
                continue
            run = Run(
                id=row["id"],
                model=row["model_path"],
                system=row["system"],
                backend=row["backend"],
                version=row["backend_version"],
                dense_mode=row["gemm_quant_mode"],
                expert_mode=row["moe_quant_mode"],
                tensor_parallel_size=int(row["tp_size"]),
                expert_parallel_size=int(row["moe_ep_size"] or 1) or 1,
                prompt_tokens=int(row["isl"]),
                output_tokens=int(row["osl"]),
                batch=int(row["batch_size"]),
                measured_s=float(row["silicon_tpot_ms"]) / 1e3,
            )
            if run.measured_s < bare_roofline_s(run):
                left_out["too fast"] += 1
                continue
            runs.append(run)
    return SiliconRuns(runs=tuple(runs), left_out=left_out)


def bare_roofline_s(run: Run) -> float:
    """A decode step at the data sheet's rates and without any overhead: nothing can be faster."""
    nominal = Efficiency(memory=1.0, decode_flops=1.0, prefill_flops=1.0, layer_overhead_s=0.0)
    reads_s, flops_s = _decode(run, nominal)
    return max(reads_s, flops_s)


def parts_of(run: Run, efficiency: Efficiency = EFFICIENCY["cuda"]) -> dict[str, float]:
    """Seconds of a token by what they are spent on: its decode step, and the prefills between two of its tokens.

    Of reading and arithmetic the longer one counts. While a sequence decodes its answer, every other one of the
    batch is prefilled once.
    """
    arch = ARCHITECTURES[run.model]
    size = run.tensor_parallel_size
    reads_s, flops_s = _decode(run, efficiency)
    reduces = 2 * arch.layers if size > 1 else 0
    wire_s = 2 * (size - 1) / size * arch.hidden * 2 / NVLINK_BYTES_PER_S[run.system]
    decode = {
        "cuda reads" if reads_s >= flops_s else "cuda decode_flops": max(reads_s, flops_s),
        "cuda launches": arch.layers * efficiency.layer_overhead_s,
        "cuda experts": arch.sparse_layers * EXPERT_LAUNCH_S,
        "nccl reduces": reduces * REDUCE_S,
        "nccl reduced_bytes": reduces * run.batch * wire_s,
        "step": STEP_S,
    }
    flops_s, reads_s = _prefill(run, efficiency)
    prefill = {
        "cuda prefill_flops" if flops_s >= reads_s else "cuda reads": max(flops_s, reads_s),
        "nccl reduced_bytes": reduces * run.prompt_tokens * wire_s,
    }
    return sum_parts(decode, scale_parts(prefill, run.batch / run.output_tokens))


def _decode(run: Run, efficiency: Efficiency) -> tuple[float, float]:
    """Seconds of reading and of arithmetic of one decode step."""
    arch, gpu = ARCHITECTURES[run.model], GPUS[SYSTEMS[run.system]]
    positions = arch.positions(run.prompt_tokens + run.output_tokens / 2)
    kv_bytes = 2.0 if run.dense_mode == "" else 1.0
    covered = expert_coverage(arch.experts, arch.experts_per_token, run.batch)
    kv_ranks = min(run.tensor_parallel_size, arch.kv_shares)
    read = (
        _weight_bytes(run, covered) / run.tensor_parallel_size
        + run.batch * arch.layers * positions * arch.kv_elements * kv_bytes / kv_ranks
        + arch.vocab * arch.hidden * 2 / run.tensor_parallel_size
    )
    used = _weights(arch, arch.experts_per_token)
    flops = run.batch * (2 * used + 4 * arch.layers * positions * arch.query_width) / run.tensor_parallel_size
    flops_per_s = gpu.flops_per_s * SPEED_UP[run.system].get(run.dense_mode, 1.0)
    return (
        read / (gpu.read_bytes_per_s * efficiency.memory),
        flops / (flops_per_s * efficiency.decode_flops),
    )


def _prefill(run: Run, efficiency: Efficiency) -> tuple[float, float]:
    """Seconds of arithmetic, and of reading, of one sequence's prefill."""
    arch, gpu = ARCHITECTURES[run.model], GPUS[SYSTEMS[run.system]]
    prompt = run.prompt_tokens
    used = _weights(arch, arch.experts_per_token)
    flops = prompt * (2 * used + 4 * arch.layers * arch.positions(prompt / 2) * arch.query_width)
    flops_per_s = gpu.flops_per_s * SPEED_UP[run.system].get(run.dense_mode, 1.0)
    steps = min(1.0, prompt / CHUNK_TOKENS)
    return (
        flops / run.tensor_parallel_size / (flops_per_s * efficiency.prefill_flops),
        steps
        * _weight_bytes(run, arch.experts)
        / run.tensor_parallel_size
        / (gpu.read_bytes_per_s * efficiency.memory),
    )


def _weights(arch: Architecture, num_experts: float) -> float:
    """Matrix elements of all layers, with so many of the routed experts."""
    dense = (arch.layers - arch.sparse_layers) * 3 * arch.hidden * arch.columns
    experts = num_experts + arch.shared_experts
    sparse = arch.sparse_layers * arch.hidden * (arch.experts + 3 * arch.expert_columns * experts)
    return arch.layers * arch.attention + dense + sparse


def _weight_bytes(run: Run, num_experts: float) -> float:
    """Bytes of them as the run keeps them: experts may be kept in another form."""
    arch = ARCHITECTURES[run.model]
    experts = arch.sparse_layers * arch.hidden * 3 * arch.expert_columns * (num_experts + arch.shared_experts)
    rest = _weights(arch, num_experts) - experts
    return rest * WEIGHT_BYTES[run.dense_mode] + experts * WEIGHT_BYTES[run.expert_mode]
