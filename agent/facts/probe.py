"""What probes found: rates of devices, links between hosts, sums within groups. Frozen values, no I/O.

Units are in the names; `measured_at_s` is seconds since the epoch on the host that measured. What ages is judged by
whoever has a clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.facts.model import Dtype, Quantisation

ProbedCarrier = Literal["tls", "tcp", "unix", "gloo", "nccl"]
"""As in `planner.carriers`, which is above this room."""


class GemmProbe(msgspec.Struct, frozen=True, kw_only=True):
    """One product of `rows` rows with a square weight, by the kernel that serves it."""

    dtype: Dtype
    quantisation: Quantisation
    kernel: str
    """The engine's name of it: `packed`, `int8`, `plain` …"""
    size: int
    """Outputs and inputs of the weight."""
    rows: int
    seconds: float
    weight_bytes: int

    @property
    def flops_per_s(self) -> float:
        return 2 * self.rows * self.size**2 / self.seconds

    @property
    def weight_bytes_per_s(self) -> float:
        """The weight is read once: at one row, this is the memory bandwidth that decoding reaches."""
        return self.weight_bytes / self.seconds


class AttentionProbe(msgspec.Struct, frozen=True, kw_only=True):
    """One query over `context` positions of the KV cache, by the engine's attention."""

    context: int
    heads: int
    kv_heads: int
    head_size: int
    seconds: float
    cache_bytes: int
    """Keys and values that are read."""

    @property
    def cache_bytes_per_s(self) -> float:
        return self.cache_bytes / self.seconds


class LayerProbe(msgspec.Struct, frozen=True, kw_only=True):
    """A decode step of `sequences` rows through thin layers of the engine's decoder: what launching them takes."""

    dtype: Dtype
    quantisation: Quantisation
    sequences: int
    context: int
    """Positions that each row attends to."""
    seconds: float
    """Of one layer."""
    weight_elements: int
    """Of a layer's matrices."""
    cache_bytes: int
    """Keys and values that are read of one sequence."""


class StepProbe(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a step through layers of one model: one of each of `sequences`, or a chunk of one's prompt."""

    rows: int
    sequences: int
    context: int
    """Positions in the cache behind the step, of each sequence."""
    seconds: float
    """Of one layer."""

    @property
    def is_prefill(self) -> bool:
        return self.rows > self.sequences


class HeadProbe(msgspec.Struct, frozen=True, kw_only=True):
    """From hidden states to drawn tokens: last norm, head, the likeliest of each row."""

    rows: int
    seconds: float


class RestProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer of a step takes longer when its device had nothing to do before: others had its caches."""

    idle_s: float
    seconds: float


class ModelProbe(msgspec.Struct, frozen=True, kw_only=True):
    """A rehearsal: steps of the engine's own decoder in one model's widths, with weights of no meaning."""

    widths: str
    """`ModelSpec.widths` of the models that it is of."""
    dtype: Dtype
    quantisation: Quantisation
    parts: int
    """Ranks that share a layer's heads and columns evenly; one of them was measured."""
    num_layers: int
    """That were passed through."""
    steps: tuple[StepProbe, ...]
    heads: tuple[HeadProbe, ...]
    rests: tuple[RestProbe, ...]
    """By `idle_s`."""
    measured_at_s: float


class DeviceProbe(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the engine's own kernels see it."""

    device: str
    name: str
    threads: int
    """Compute threads of a CPU; 0 for a GPU."""
    measured_at_s: float
    copy_bytes_per_s: float
    """Read and written bytes of a copy, added up."""
    read_bytes_per_s: float
    gemms: tuple[GemmProbe, ...]
    attention: tuple[AttentionProbe, ...]
    layers: tuple[LayerProbe, ...] = ()
    """Earlier releases measured none."""
    models: tuple[ModelProbe, ...] = ()
    """Of those that were rehearsed here, the latest last."""

    def gemm(self, dtype: Dtype, quantisation: Quantisation, rows: int) -> GemmProbe | None:
        return next(
            (g for g in self.gemms if (g.dtype, g.quantisation, g.rows) == (dtype, quantisation, rows)), None
        )

    def rehearsals(self, widths: str, dtype: Dtype, quantisation: Quantisation) -> tuple[ModelProbe, ...]:
        """Of such a model in this precision, by `parts`."""
        key = (widths, dtype, quantisation)
        found = (each for each in self.models if (each.widths, each.dtype, each.quantisation) == key)
        return tuple(sorted(found, key=lambda each: each.parts))


class HostProbe(msgspec.Struct, frozen=True, kw_only=True):
    """All usable devices of a host, and its disk."""

    host: str
    hardware: str
    """Hash of what the figures hang on (`facts.measured.hardware_hash`)."""
    measured_at_s: float
    took_s: float
    is_quick: bool
    """Measured with small sizes: caches may flatter it."""
    devices: tuple[DeviceProbe, ...]
    disk_read_bytes_per_s: float | None
    """From a file of its own that the page cache let go; None where the disk had no room for one."""

    def device(self, device_id: str) -> DeviceProbe | None:
        return next((probe for probe in self.devices if probe.device == device_id), None)


class LinkProbe(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two ranks' processes: a message of n bytes takes `latency_s + n / bytes_per_s`.

    What the carrier itself takes is in both figures.
    """

    source: str
    target: str
    source_device: str
    target_device: str
    carrier: ProbedCarrier
    latency_s: float
    bytes_per_s: float
    streamed_bytes: int
    measured_at_s: float
    source_hardware: str = ""
    target_hardware: str = ""


class SumProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank spends in one all-reduce between two products, waiting for slower members included."""

    num_bytes: int
    seconds: float


class GroupProbe(msgspec.Struct, frozen=True, kw_only=True):
    """All-reduces of a candidate tensor-parallel group. `members` are `host/device`, in order."""

    members: tuple[str, ...]
    carrier: ProbedCarrier
    sums: tuple[SumProbe, ...]
    measured_at_s: float
    hardware: tuple[str, ...] = ()
    """Of each member's host."""


class ProbeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent keeps: of its own host, the links that begin there and the groups that it leads."""

    host: str
    hardware: str
    """Of the host as it is now."""
    probe: HostProbe | None = None
    """None where nothing was measured, or the hardware is another since."""
    links: tuple[LinkProbe, ...] = ()
    groups: tuple[GroupProbe, ...] = ()
    serving: tuple[str, ...] = ()
    """Deployments with ranks here now: measuring would slow them down, and is refused."""
