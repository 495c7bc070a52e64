"""What a device does with the engine's own kernels: copies, products, attention; and what the disk gives.

Shapes: R rows, N outputs, K inputs, H query heads, S head size.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count

import msgspec
import torch
from torch import Tensor

from agent.engine.attention import attend
from agent.engine.batch import lay_out
from agent.engine.decoder import Decoder
from agent.engine.kv_cache import KvCache
from agent.engine.layer_steps import Act, decoding, step_through
from agent.engine.linear import Linear
from agent.engine.memory import check_memory
from agent.engine.random_weights import random_weights
from agent.errors import FleetError
from agent.facts.model import Dtype, FamilySpec, ModelSpec, Quantisation, RopeSpec
from agent.facts.probe import AttentionProbe, DeviceProbe, GemmProbe, LayerProbe
from agent.planner.plan import BLOCK_TOKENS
from agent.planner.shards import slice_shard, whole_extent
from agent.wire.probe import DeviceProbeConfig, DeviceReport, ProbeSizes
from agent.wire.rank import SamplingParams, SequenceSlice, Step

SKINNY_ROWS = (1, 8, 64)
LAYER_SEQUENCES = (1, 8)
THIN = ModelSpec(
    name="thin",
    family=FamilySpec(name="llama", architecture="LlamaForCausalLM"),
    num_layers=16,
    hidden_size=256,
    intermediate_size=512,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    vocab_size=256,
    max_context=128,
    rms_norm_eps=1e-5,
    rope=RopeSpec(theta=1e4),
    tie_word_embeddings=True,
    dtype="bfloat16",
    num_parameters=0,
)
"""A decoder whose layers take hardly longer than it takes to launch them."""
MIN_REPEATS, MAX_REPEATS = 3, 1000
LONG_SPANS = 2
"""After so many spans even one repeat is enough."""
LONG_ROUND_S = 4.0
"""A round of acts that takes so long is measured once, its first time: what a warm-up takes away is lost in it, and
a slow device would not get through all it has to measure.
"""
HEADS, KV_HEADS, HEAD_SIZE = 32, 8, 128
"""Llama 3.1 8B's attention."""
DISK_WRITE_LIMIT_S = 3.0
DISK_SPARE = 4
"""Free space must be so many times the file's."""
_DISK_BLOCK_BYTES = 4 << 20
KINDS: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def measure_device(config: DeviceProbeConfig) -> DeviceReport:
    """Raises FleetError E804 or E805 when the device has no room or is not there."""
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    sizes = config.sizes
    # the widest of a turn: float32 weights, the one they are copied from and what packing holds meanwhile
    needed_bytes = sizes.weights_bytes + 3 * 4 * sizes.matrix_size**2 + sizes.copy_bytes
    hint = "free memory there, or measure with --quick"
    check_room(config.host, config.device, device, needed_bytes, hint=hint)
    kinds = _served_kinds(device)
    with torch.inference_mode():
        copy_s, read_s = _measure_memory(device, sizes)
        probe = DeviceProbe(
            device=config.device,
            name=config.name,
            threads=torch.get_num_threads() if device.type == "cpu" else 0,
            measured_at_s=time.time(),
            copy_bytes_per_s=2 * sizes.copy_bytes / copy_s,
            read_bytes_per_s=sizes.copy_bytes / read_s,
            gemms=tuple(gemm for kind in kinds for gemm in _measure_gemms(device, sizes, *kind)),
            attention=tuple(_measure_attention(device, sizes, context) for context in sizes.contexts),
            layers=tuple(layer for kind in kinds for layer in _measure_layers(device, sizes, *kind)),
        )
    disk = _measure_disk(config.disk_dir, sizes.disk_bytes) if config.disk_dir else None
    return DeviceReport(device=probe, disk_read_bytes_per_s=disk)


def check_room(host: str, name: str, device: torch.device, needed_bytes: int, *, hint: str) -> None:
    """Raises FleetError E804 naming the device, with a way out, or E805."""
    try:
        check_memory(device, needed_bytes)
    except FleetError as error:
        if error.code != "E804":
            raise
        raise FleetError(
            "E804",
            f"a probe of {name} needs {needed_bytes / 1e9:.1f} GB, and they are not free",
            hint=hint,
            host=host,
        ) from error


def _measure_memory(device: torch.device, sizes: ProbeSizes) -> tuple[float, float]:
    """Seconds of a copy, and of reading as much once."""
    source = torch.ones(sizes.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy_s = seconds_of(lambda _: target.copy_(source), device, sizes.span_s)
    return copy_s, seconds_of(lambda _: source.sum(), device, sizes.span_s)


def _served_kinds(device: torch.device) -> list[tuple[Dtype, Quantisation]]:
    kinds: list[tuple[Dtype, Quantisation]] = [("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "none")]
    return kinds if device.type == "cpu" else [*kinds, ("float16", "none")]


def _measure_gemms(
    device: torch.device, sizes: ProbeSizes, dtype: Dtype, quantisation: Quantisation
) -> Iterator[GemmProbe]:
    """Skinny products and a large one. As many weights take turns as caches cannot hold."""
    size, kind = sizes.matrix_size, KINDS[dtype]
    bytes_each = size * size * (1 if quantisation == "int8" else kind.itemsize)
    base_NK = torch.randn((size, size), dtype=torch.float32, device=device).mul_(size**-0.5).to(kind)
    number = max(2, sizes.weights_bytes // bytes_each)
    linears = [Linear(base_NK.clone(), None, quantisation=quantisation) for _ in range(number)]
    for rows in (*SKINNY_ROWS, sizes.large_rows):
        rows_RK = torch.randn((rows, size), device=device).to(kind)
        yield GemmProbe(
            dtype=dtype,
            quantisation=quantisation,
            kernel=linears[0].kernel.shape.kernel,
            size=size,
            rows=rows,
            seconds=seconds_of(_in_turn(linears, rows_RK), device, sizes.span_s),
            weight_bytes=linears[0].kernel.num_bytes,
        )


def _in_turn(linears: list[Linear], rows_RK: Tensor) -> Act:
    return lambda number: linears[number % len(linears)](rows_RK)


def _measure_attention(device: torch.device, sizes: ProbeSizes, context: int) -> AttentionProbe:
    """One query at the end of a sequence; as many layers take turns as caches cannot hold."""
    kind = torch.bfloat16
    blocks = -(-context // BLOCK_TOKENS)
    layer_bytes = 2 * context * KV_HEADS * HEAD_SIZE * kind.itemsize
    layers = max(2, min(64, sizes.weights_bytes // layer_bytes))
    cache = KvCache(
        num_layers=layers,
        batch=1,
        context=context,
        num_blocks=blocks,
        num_kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        kind=kind,
        device=device,
    )
    piece = SequenceSlice(
        slot=0,
        start=context - 1,
        tokens=[0],
        samples=False,
        params=SamplingParams(),
        new_blocks=list(range(blocks)),
    )
    cache.admit([piece])
    batch = lay_out(Step(step_id=1, slices=[piece]), cache.tables, kind=kind, device=device)
    queries_1HS = torch.randn((1, HEADS, HEAD_SIZE), device=device).to(kind)
    seconds = seconds_of(lambda number: attend(queries_1HS, cache, number % layers, batch), device, sizes.span_s)
    return AttentionProbe(
        context=context,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        seconds=seconds,
        cache_bytes=layer_bytes,
    )


def _measure_layers(
    device: torch.device, sizes: ProbeSizes, dtype: Dtype, quantisation: Quantisation
) -> Iterator[LayerProbe]:
    """Thin layers, so that products take little of their time; enough of them that each finds its code cold."""
    kind = KINDS[dtype]
    extent = msgspec.structs.replace(whole_extent(THIN), is_first_stage=False, is_last_stage=False)
    decoder = Decoder(
        THIN,
        extent,
        random_weights(THIN, extent, kind=kind, device=device, quantisation=quantisation),
        context=THIN.max_context,
        kind=kind,
        device=device,
        on_layer=lambda: None,
    )
    matrices = [piece for piece in slice_shard(THIN, extent) if len(piece.shape) > 1]
    for sequences in LAYER_SEQUENCES:
        slices = decoding(sequences, context=THIN.max_context)
        step = step_through(decoder, THIN, extent, slices, device=device, kind=kind)
        yield LayerProbe(
            dtype=dtype,
            quantisation=quantisation,
            sequences=sequences,
            context=THIN.max_context,
            seconds=seconds_of(step, device, sizes.span_s) / THIN.num_layers,
            weight_elements=sum(piece.num_elements for piece in matrices) // THIN.num_layers,
            cache_bytes=2 * THIN.max_context * THIN.num_kv_heads * THIN.head_size * kind.itemsize,
        )


def seconds_of(act: Act, device: torch.device, span_s: float) -> float:
    """Seconds of one `act`, which is told its number; the first one is warm-up and not counted.

    A CPU's is the median of single ones. A GPU's are launched behind each other, between two events: its queue
    stays full, as in a step, and the launch of one overlaps with the work of the one before.
    """
    [times] = _timed_in_turn([act], device, span_s)
    return statistics.median(times)


def seconds_in_turn(acts: Sequence[Act], device: torch.device, span_s: float) -> list[float]:
    """Seconds of each of several acts that follow each other round and round; otherwise as `seconds_of`.

    What each finds in a CPU's caches is what the others left there: measured, a head between steps takes nearly
    twice as long as a head again and again. A GPU's take no turns: one that waits for its result would empty the
    queue of the next.

    Means, for they are to be added up. Where processes have a quota, a short act takes its own time or that and a
    pause: its median is one of the two.
    """
    return [statistics.fmean(times) for times in _timed_in_turn(acts, device, span_s)]


def _timed_in_turn(acts: Sequence[Act], device: torch.device, span_s: float) -> list[list[float]]:
    """Seconds of every repeat of every act; of a GPU's one figure each, which is a mean already."""
    if device.type == "cuda":
        return [[_cuda_seconds_of(act, device, span_s)] for act in acts]
    first = [_seconds(act, 0) for act in acts]
    if sum(first) >= LONG_ROUND_S:
        return [[seconds] for seconds in first]
    times: list[list[float]] = [[] for _ in acts]
    begun = time.perf_counter()
    for number in count(1):
        for act, seconds in zip(acts, times, strict=True):
            seconds.append(_seconds(act, number))
        # A slow device gets fewer repeats rather than no figures at all.
        is_long = time.perf_counter() - begun >= (span_s if number >= MIN_REPEATS else LONG_SPANS * span_s)
        if number >= MAX_REPEATS or is_long:
            break
    return times


def _seconds(act: Act, number: int) -> float:
    before = time.perf_counter()
    act(number)
    return time.perf_counter() - before


def _cuda_seconds_of(act: Act, device: torch.device, span_s: float) -> float:
    first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    act(0)
    torch.cuda.synchronize(device)
    before = time.perf_counter()
    act(1)
    torch.cuda.synchronize(device)
    repeats = int(span_s / max(time.perf_counter() - before, 1e-6))
    repeats = min(MAX_REPEATS, max(MIN_REPEATS, repeats))
    with torch.cuda.device(device):
        first.record()
        for number in range(repeats):
            act(number)
        last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1e3 / repeats


def _measure_disk(directory: str, most_bytes: int) -> float | None:
    """Bytes/s of reading a file that the page cache was told to forget; None where there is no room to write it.

    The file has no name: nothing of it is left, whatever ends this process.
    """
    status = os.statvfs(directory)
    if status.f_bavail * status.f_frsize < DISK_SPARE * most_bytes:
        return None
    block = os.urandom(_DISK_BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        written, begun = 0, time.perf_counter()
        while written < most_bytes and time.perf_counter() - begun < DISK_WRITE_LIMIT_S:
            written += file.write(block)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        buffer = bytearray(_DISK_BLOCK_BYTES)
        begun = time.perf_counter()
        while file.readinto(buffer):
            continue
        return written / (time.perf_counter() - begun)
