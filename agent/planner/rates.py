"""What devices and links can do where nothing measured them yet: documented defaults, by kind and name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate

import msgspec

from agent.facts.cluster import ClusterFacts, DeviceFacts, DeviceKind, HostFacts, LinkFacts
from agent.facts.model import Dtype, Quantisation
from agent.facts.probe import DeviceProbe, GemmProbe
from agent.planner.carriers import CarrierKind
from agent.planner.rehearsal import on_line


class DeviceRates(msgspec.Struct, frozen=True, kw_only=True):
    """Attainable rates of a device: efficiencies are already applied."""

    read_bytes_per_s: float
    decode_flops_per_s: float
    prefill_flops_per_s: float
    layer_overhead_s: float
    """Launching kernels of one layer, independent of its size."""
    busy_watts: float
    idle_watts: float
    is_measured: bool
    sequence_overhead_s: float = 0.0
    """Likewise of each further sequence of a step: attention goes through them one by one on a CPU."""
    products: tuple[tuple[int, float], ...] = ()
    """(rows, seconds per weight element) of measured products, by rows; empty where none were measured."""

    def product_s(self, rows: float) -> float:
        """Seconds per weight element of a product with so many rows, between the measured ones on a line.

        Fewer rows than were measured take as long as the fewest, more take as long per row as the most.
        """
        most, most_s = self.products[-1]
        return on_line(self.products, rows) if rows <= most else most_s * rows / most


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """Share of a device's nominal rates that a decoder reaches."""

    memory: float
    decode_flops: float
    prefill_flops: float
    layer_overhead_s: float


class Nominal(msgspec.Struct, frozen=True, kw_only=True):
    """Data sheet figures: bytes/s, dense 16-bit FLOP/s, watts at full load."""

    read_bytes_per_s: float
    flops_per_s: float
    watts: float


EFFICIENCY: dict[DeviceKind, Efficiency] = {
    # Least squares over 1,775 measured deployments, H100 to GB300 (AIConfigurator's silicon data).
    "cuda": Efficiency(memory=0.69, decode_flops=0.46, prefill_flops=0.55, layer_overhead_s=57e-6),
    # bf16 with packed weights on one AVX-512 core: 24.6 of 30 GB/s. 0.35 ms per layer of small operations, as our
    # own ranks measured with one thread on two shared cores.
    "cpu": Efficiency(memory=0.82, decode_flops=0.5, prefill_flops=0.7, layer_overhead_s=350e-6),
}

# Vendors' data sheets, dense figures without sparsity; matched by the longest name contained in the device's.
GPUS: dict[str, Nominal] = {
    "B200": Nominal(read_bytes_per_s=8.0e12, flops_per_s=2250e12, watts=1000),
    "H200": Nominal(read_bytes_per_s=4.8e12, flops_per_s=989e12, watts=700),
    "H100 PCIe": Nominal(read_bytes_per_s=2.0e12, flops_per_s=756e12, watts=350),
    "H100": Nominal(read_bytes_per_s=3.35e12, flops_per_s=989e12, watts=700),
    "A100-SXM4-40GB": Nominal(read_bytes_per_s=1.555e12, flops_per_s=312e12, watts=400),
    "A100": Nominal(read_bytes_per_s=2.0e12, flops_per_s=312e12, watts=400),
    "L40S": Nominal(read_bytes_per_s=864e9, flops_per_s=362e12, watts=350),
    "L40": Nominal(read_bytes_per_s=864e9, flops_per_s=181e12, watts=300),
    "L4": Nominal(read_bytes_per_s=300e9, flops_per_s=121e12, watts=72),
    "A40": Nominal(read_bytes_per_s=696e9, flops_per_s=150e12, watts=300),
    "A10": Nominal(read_bytes_per_s=600e9, flops_per_s=125e12, watts=150),
    "A6000": Nominal(read_bytes_per_s=768e9, flops_per_s=155e12, watts=300),
    "V100": Nominal(read_bytes_per_s=900e9, flops_per_s=125e12, watts=300),
    "T4": Nominal(read_bytes_per_s=320e9, flops_per_s=65e12, watts=70),
    "RTX 5090": Nominal(read_bytes_per_s=1792e9, flops_per_s=209e12, watts=575),
    "RTX 4090": Nominal(read_bytes_per_s=1008e9, flops_per_s=165e12, watts=450),
    "RTX 4080": Nominal(read_bytes_per_s=717e9, flops_per_s=97e12, watts=320),
    "RTX 3090": Nominal(read_bytes_per_s=936e9, flops_per_s=71e12, watts=350),
    "RTX 3080": Nominal(read_bytes_per_s=760e9, flops_per_s=60e12, watts=320),
    "RTX 3060": Nominal(read_bytes_per_s=360e9, flops_per_s=25e12, watts=170),
}
UNKNOWN_GPU = Nominal(read_bytes_per_s=450e9, flops_per_s=60e12, watts=250)
CPU_READ_BYTES_PER_S = 30e9
"""What one server core already draws (28 to 34 GB/s measured); more cores add little to a virtual machine."""
CPU_CORE_FLOPS_PER_S = 60e9
"""A core without 16-bit matrix instructions; one with them reaches 400e9, which a probe then tells."""
CPU_CORE_WATTS = 8.0
IDLE_WATTS_SHARE = 0.2
FLOAT32_SLOWDOWN = 4.0
"""float32 products against 16-bit ones: 4.8 times slower where a bf16 CPU was measured; GPUs are slower still."""

# One way, latency and rate, carriers left out. Between hosts: 1 GbE through TCP. Within a host: a unix socket (4 us
# and 3.6 GB/s measured, between processes that had just run), NCCL through PCIe 4.
DISTINCT_HOSTS = (150e-6, 117e6)
SAME_HOST_CPU = (10e-6, 3.5e9)
SAME_HOST_CUDA = (20e-6, 20e9)

GATEWAY_STEP_S, GATEWAY_ROW_S = 400e-6, 100e-6
"""Gateway and its connections to the ranks: once a step, and for each further token that it draws."""
RANK_STEP_S, RANK_ROW_S = 400e-6, 90e-6
"""The same in the rank that draws: messages and bookkeeping, at the speed of a core that launches a layer in the
table's time.

Together 1.06 ms with one row and 2.37 ms with eight, from the last product of a step to the begin of the next, on
two shared cores."""


REQUEST_S = 8e-3
"""A request's way to its first step and back to its client: HTTP, tokens, and a gateway and ranks whose code and
weights other work has put out of the caches meanwhile.

1.5 ms where requests follow each other at once, 10 ms between streams, 50 ms after seconds of rest, on two shared
cores.
"""


WARM_REQUEST_S = 4e-3
"""The same where it is known by itself what ranks take longer after a rest."""


def turn_s(num_drawn: int, *, slowness: float = 1.0) -> float:
    """Seconds from a step's last product to the next step, for so many drawn tokens.

    `slowness` is how many times longer than the table's the drawing rank's host takes for what no device does.
    """
    further = max(0, num_drawn - 1)
    return GATEWAY_STEP_S + GATEWAY_ROW_S * further + slowness * (RANK_STEP_S + RANK_ROW_S * further)


def slowness_of(device: DeviceKind, rates: DeviceRates) -> float:
    """Of a host, by what launching a layer takes on its CPU; 1 where that is a GPU's own figure."""
    return _slowness(rates.layer_overhead_s) if device == "cpu" else 1.0


def host_slowness(host: HostFacts) -> float:
    """The same of a host, whoever computes there: by what was probed on its CPU, 1 where nothing was."""
    launches_s = [
        overheads[0]
        for device in host.devices
        if device.kind == "cpu" and device.probe is not None
        for dtype in sorted({layer.dtype for layer in device.probe.layers})
        if (overheads := probed_overheads(device.probe, dtype, "none")) is not None
    ]
    return _slowness(min(launches_s)) if launches_s else 1.0


def _slowness(launch_s: float) -> float:
    return max(1.0, launch_s / EFFICIENCY["cpu"].layer_overhead_s)


class CarrierRates(msgspec.Struct, frozen=True, kw_only=True):
    """What a carrier takes by itself, on top of the link."""

    message_s: float
    """One hidden state from stage to stage."""
    all_reduce_s: float
    seconds_per_byte: float = 0.0
    """Of a message: ciphers and copies, done by the ranks' own threads."""


# 8 KiB and 256 KiB between two processes on one machine, medians beside other load (`make bench-links`). Sums among
# ranks that compute take longer than 0.1 ms: they wait for the slower rank, 0.3 ms and more on shared cores. NCCL's
# are fitted with the efficiencies above. Gloo's threads wait for a core beside such ranks: 0.1 ms when idle.
CARRIERS: dict[CarrierKind, CarrierRates] = {
    "tls": CarrierRates(message_s=45e-6, all_reduce_s=350e-6, seconds_per_byte=1.2e-9),
    "unix": CarrierRates(message_s=25e-6, all_reduce_s=300e-6, seconds_per_byte=0.2e-9),
    "tcp": CarrierRates(message_s=30e-6, all_reduce_s=310e-6, seconds_per_byte=0.3e-9),
    "gloo": CarrierRates(message_s=1.2e-3, all_reduce_s=1.2e-3),
    "nccl": CarrierRates(message_s=8e-6, all_reduce_s=12e-6),
}


def rates_of(device: DeviceFacts, dtype: Dtype, quantisation: Quantisation = "none") -> DeviceRates:
    """Rates of a device in the serving dtype: a probe's where there is one, else the table's."""
    nominal = nominal_of(device)
    efficiency = EFFICIENCY[device.kind]
    probed = None if device.probe is None else probed_rates(device.probe, dtype, quantisation)
    if probed is not None:
        read, decode_flops, prefill_flops = probed
    else:
        slowdown = FLOAT32_SLOWDOWN if dtype == "float32" and device.flops_per_s is None else 1.0
        read = (device.read_bytes_per_s or nominal.read_bytes_per_s) * efficiency.memory
        flops = (device.flops_per_s or nominal.flops_per_s) / slowdown
        decode_flops, prefill_flops = flops * efficiency.decode_flops, flops * efficiency.prefill_flops
    layer_overhead_s, sequence_overhead_s = efficiency.layer_overhead_s, 0.0
    products: tuple[tuple[int, float], ...] = ()
    if device.probe is not None and probed is not None:
        products = probed_products(device.probe, dtype, quantisation)
        layer_overhead_s, sequence_overhead_s = probed_overheads(device.probe, dtype, quantisation) or (
            layer_overhead_s,
            sequence_overhead_s,
        )
    return DeviceRates(
        read_bytes_per_s=read,
        decode_flops_per_s=decode_flops,
        prefill_flops_per_s=prefill_flops,
        layer_overhead_s=layer_overhead_s,
        busy_watts=nominal.watts,
        idle_watts=nominal.watts * IDLE_WATTS_SHARE,
        is_measured=probed is not None or device.read_bytes_per_s is not None,
        sequence_overhead_s=sequence_overhead_s,
        products=products,
    )


def probed_rates(probe: DeviceProbe, dtype: Dtype, quantisation: Quantisation) -> tuple[float, float, float] | None:
    """Bytes/s of reading weights, FLOP/s of many rows that decode, and of a prefill; None for a kind not probed.

    They are what the engine's kernels reached on one row, on the most rows of a skinny product, and on a chunk: no
    efficiency is applied to them.
    """
    found = _gemms_of(probe, dtype, quantisation)
    if len(found) < 3:
        return None
    leanest, *_, skinny, large = found
    return leanest.weight_bytes_per_s, skinny.flops_per_s, large.flops_per_s


def probed_products(probe: DeviceProbe, dtype: Dtype, quantisation: Quantisation) -> tuple[tuple[int, float], ...]:
    """(rows, seconds per weight element), by rows. A product is never quicker than one with fewer rows."""
    found = _gemms_of(probe, dtype, quantisation)
    seconds = accumulate((gemm.seconds / gemm.size**2 for gemm in found), max)
    return tuple((gemm.rows, longest_s) for gemm, longest_s in zip(found, seconds, strict=True))


def _gemms_of(probe: DeviceProbe, dtype: Dtype, quantisation: Quantisation) -> list[GemmProbe]:
    """By rows."""
    found = (gemm for gemm in probe.gemms if (gemm.dtype, gemm.quantisation) == (dtype, quantisation))
    return sorted(found, key=lambda gemm: gemm.rows)


def probed_overheads(probe: DeviceProbe, dtype: Dtype, quantisation: Quantisation) -> tuple[float, float] | None:
    """Seconds of launching a layer, and of each further sequence in it; None where thin layers were not probed.

    They are what a thin layer took beyond its products at their measured rates.
    """
    layers = sorted(
        (layer for layer in probe.layers if (layer.dtype, layer.quantisation) == (dtype, quantisation)),
        key=lambda layer: layer.sequences,
    )
    products = probed_products(probe, dtype, quantisation)
    if len(layers) < 2 or not products:
        return None
    one, *_, many = layers
    own_s = [max(0.0, layer.seconds - layer.weight_elements * products[0][1]) for layer in (one, many)]
    return own_s[0], max(0.0, own_s[1] - own_s[0]) / (many.sequences - one.sequences)


def nominal_of(device: DeviceFacts) -> Nominal:
    """The table's row for a device; a CPU's grows with its cores."""
    if device.kind == "cpu":
        cores = max(1, device.cores)
        return Nominal(
            read_bytes_per_s=CPU_READ_BYTES_PER_S,
            flops_per_s=CPU_CORE_FLOPS_PER_S * cores,
            watts=CPU_CORE_WATTS * cores,
        )
    return _gpu_of(device.name)


@lru_cache(maxsize=256)
def _gpu_of(name: str) -> Nominal:
    words = name.lower().replace("-", " ")
    known = [each for each in GPUS if each.lower().replace("-", " ") in words]
    return GPUS[max(known, key=len)] if known else UNKNOWN_GPU


def corrected_links(
    facts: ClusterFacts, factors: Mapping[tuple[str, str], tuple[float, float]]
) -> tuple[LinkFacts, ...]:
    """The links of a cluster, latency and bytes of each slower by its factors; a default where none was known."""
    known = {(link.source, link.target) for link in facts.links}
    there = {host.name for host in facts.hosts}
    unknown = [
        LinkFacts(source=one, target=other, latency_s=DISTINCT_HOSTS[0], bytes_per_s=DISTINCT_HOSTS[1])
        for one, other in sorted(factors)
        if {one, other} <= there and (one, other) not in known and (other, one) not in known
    ]
    return tuple(
        slowed_link(link, *factors.get((min(link.source, link.target), max(link.source, link.target)), (1.0, 1.0)))
        for link in (*facts.links, *unknown)
    )


def slowed_link(link: LinkFacts, longer: float, slower: float) -> LinkFacts:
    """Its latencies `longer` times as long and its rates `slower` times as slow; below 1: a better link."""
    if longer == slower == 1.0:
        return link
    return msgspec.structs.replace(
        link,
        latency_s=link.latency_s * longer,
        bytes_per_s=link.bytes_per_s / slower,
        sums=tuple((size, link.sums[0][1] * longer + (s - link.sums[0][1]) * slower) for size, s in link.sums),
    )


class LinkTable:
    """Latency and rate between any two hosts of a cluster; defaults where no link fact tells."""

    def __init__(self, facts: ClusterFacts, *, is_network_trusted: bool = False) -> None:
        self.is_network_trusted = is_network_trusted
        self.are_equal = not facts.links
        """No fact tells one pair of hosts from another."""
        self._hosts = facts.hosts
        self._gateways_longer_s: dict[str, float] = {}
        self._links: dict[tuple[str, str], dict[CarrierKind | None, LinkFacts]] = {}
        for link in facts.links:
            self._links.setdefault((link.source, link.target), {})[link.carrier] = link

    def gateway_longer_s(self, gateway: str) -> float:
        """What a step's turn takes longer with the gateway on this host than in the table."""
        if gateway not in self._gateways_longer_s:  # every replica of a large fleet asks
            host = next((host for host in self._hosts if host.name == gateway), None)
            slowness = host_slowness(host) if host is not None else 1.0
            self._gateways_longer_s[gateway] = (slowness - 1) * GATEWAY_STEP_S
        return self._gateways_longer_s[gateway]

    def between(self, source: str, target: str, kind: DeviceKind) -> LinkFacts:
        """The link from one host to another, or within one. A fact of the way back serves where ours is missing."""
        known = None
        if not self.are_equal:
            known = self.known(source, target, kind) or self.known(target, source, kind)
        if known is not None:
            return known
        if source != target:
            latency_s, bytes_per_s = DISTINCT_HOSTS
        else:
            latency_s, bytes_per_s = SAME_HOST_CPU if kind == "cpu" else SAME_HOST_CUDA
        return LinkFacts(source=source, target=target, latency_s=latency_s, bytes_per_s=bytes_per_s)

    def known(self, source: str, target: str, kind: DeviceKind) -> LinkFacts | None:
        """The fact that fits the carrier which would serve; None where there is no fact of this direction.

        Between hosts, one of another socket carrier is better than none: the wire is the same.
        """
        facts = self._links.get((source, target), {})
        wanted: list[CarrierKind | None]
        if source == target:
            wanted = [None, "unix"] if kind == "cpu" else [None, "nccl"]
        else:
            plain: list[CarrierKind | None] = ["nccl", "tcp"] if kind == "cuda" else ["tcp"]
            wanted = [None, *(plain if self.is_network_trusted else []), "tls", "tcp"]
        return next((facts[carrier] for carrier in wanted if carrier in facts), None)
