"""Probes: asked of agents by an operator, measured by processes of their engines.

Links are measured by all of a probe's hosts at once: each performs its own steps in order, and they meet at the
rendezvous store of one of them, the keeper, as ranks do.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import DeviceKind
from agent.facts.model import Dtype, ModelSpec, Quantisation
from agent.facts.probe import DeviceProbe, GroupProbe, LinkProbe, ModelProbe, ProbedCarrier
from agent.wire.agent import HostAddress
from agent.wire.rank import TlsFiles


class ProbeSizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much is moved and multiplied. Each single measurement is repeated for about `span_s`."""

    copy_bytes: int = 256 << 20
    matrix_size: int = 4096
    weights_bytes: int = 256 << 20
    """Weights of a dtype that take turns: more than caches hold."""
    large_rows: int = 512
    contexts: tuple[int, ...] = (1024, 16384)
    disk_bytes: int = 256 << 20
    link_bytes: int = 64 << 20
    """At most, in one direction; slow links get what passes in `span_s`."""
    sum_bytes: tuple[int, ...] = (2 << 10, 16 << 10, 1 << 20)
    """A token's in a narrow model, that of several tokens or of a wide model, and a prompt's."""
    span_s: float = 0.2
    is_quick: bool = False


QUICK = ProbeSizes(
    copy_bytes=64 << 20,
    matrix_size=1024,
    weights_bytes=32 << 20,
    large_rows=128,
    contexts=(256, 2048),
    disk_bytes=16 << 20,
    link_bytes=8 << 20,
    sum_bytes=(2 << 10, 16 << 10, 256 << 10),
    span_s=0.05,
    is_quick=True,
)


class ProbeDevices(msgspec.Struct, frozen=True, kw_only=True):
    """Measure this host's devices now. E501 while one serves, unless that is asked for."""

    sizes: ProbeSizes = ProbeSizes()
    even_serving: bool = False


class ProbeModel(msgspec.Struct, frozen=True, kw_only=True):
    """Rehearse a model on this host's devices, which were measured before. E501 while one serves."""

    model: ModelSpec
    """Its tensors are of no interest."""
    dtype: Dtype
    quantisation: Quantisation = "none"
    prefill_chunk: int
    sizes: ProbeSizes = ProbeSizes()
    even_serving: bool = False


class LinkStep(msgspec.Struct, frozen=True, kw_only=True):
    """One link or group to measure. `members` are `host/device`; two of them also stream to each other."""

    name: str
    members: tuple[str, ...]
    carrier: ProbedCarrier
    after: tuple[str, ...] = ()
    """Steps to wait for: those that use the same machine, whichever hosts they belong to."""


class ProbeLinks(msgspec.Struct, frozen=True, kw_only=True):
    """Take part in these steps. The answer comes when all of this host's are over."""

    probe_id: str
    keeper: str
    """Host whose agent keeps the rendezvous."""
    members: tuple[HostAddress, ...]
    steps: tuple[LinkStep, ...]
    hardware: dict[str, str]
    """Of every member host."""
    sizes: ProbeSizes = ProbeSizes()
    even_serving: bool = False


class LinkFailure(msgspec.Struct, frozen=True, kw_only=True):
    members: tuple[str, ...]
    message: str


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """Links that begin at this host, groups that it leads, and what went wrong."""

    host: str
    links: tuple[LinkProbe, ...] = ()
    groups: tuple[GroupProbe, ...] = ()
    failures: tuple[LinkFailure, ...] = ()


def serving_refusal(host: str, deployments: Sequence[str]) -> FleetError:
    """E501 of a host whose devices serve."""
    what = f"deployment {deployments[0]}" if len(deployments) == 1 else f"deployments {', '.join(deployments)}"
    return FleetError(
        "E501",
        f"it serves {what}: a probe would slow its answers down, and be slowed down by them",
        hint="odctl probe --even-serving measures all the same; odctl destroy frees the devices",
        host=host,
    )


# --- the measuring process: `python -m agent.engine probe` --------------------------------------------


LOAD_LIMIT_S = 60
"""For torch to load, from a cold disk or on a busy machine, before the limit of a measurement begins."""


class DeviceProbeConfig(msgspec.Struct, frozen=True, kw_only=True, tag="devices"):
    host: str
    device: str
    kind: DeviceKind
    name: str
    threads: int
    sizes: ProbeSizes
    disk_dir: str
    """Where a file may be written for reading it back; empty: the disk is another process's."""
    limit_s: int
    """It ends itself after this long, whatever became of its agent."""


class ModelProbeConfig(msgspec.Struct, frozen=True, kw_only=True, tag="model"):
    host: str
    device: str
    threads: int
    order: ProbeModel
    limit_s: int


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """One device's rehearsals of a model: whole layers, and halves of them where its heads can be halved."""

    models: tuple[ModelProbe, ...]


class LinkProbeConfig(msgspec.Struct, frozen=True, kw_only=True, tag="links"):
    """For one seat: the process of one device of a host."""

    seat: str
    order: ProbeLinks
    cluster: str
    address: str
    agent_socket: str
    tls: TlsFiles
    threads: int
    limit_s: int


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    device: DeviceProbe
    disk_read_bytes_per_s: float | None = None
