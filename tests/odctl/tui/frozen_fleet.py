"""A fleet that stands still: every state a host can have, one deployment, open and healed faults.

Figures are invented for these tests, and consistent with each other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.facts.cluster import DeviceFacts, HostFacts
from agent.facts.fault import Fault
from agent.facts.sample import (
    DeviceProcess,
    DeviceSample,
    HostSample,
    Lost,
    NotAvailable,
    Ok,
    ProcessSample,
    Stale,
)
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import (
    ModelRef,
    Objective,
    Plan,
    Predicted,
    Replica,
    Serving,
    Shard,
    ShardBytes,
    Stage,
)
from agent.wire.agent import DeploymentRecord, DeploymentStatus, HostAddress, RankView
from agent.wire.gateway import BackendStatus, CheckReport
from agent.wire.rank import RankStatus
from odctl.fleet import Fleet, FleetSnapshot, HostView
from odctl.fleet.history import DeploymentRow, History, HostRow, host_row
from odctl.fleet.snapshot import DeploymentView
from odctl.inventory import Learning
from tests.odctl.fleet import values
from tests.odctl.fleet.values import EPOCH_S, GIB

T = TypeVar("T")
NOW_S = EPOCH_S + 900


class FrozenClock:
    def now_s(self) -> float:
        return NOW_S

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002 - the Protocol's
        raise AssertionError("a frozen clock has no time to sleep")


class FrozenFeed:
    """Hands the app these snapshots; `push` hands it another. What it cannot do raises a FleetError."""

    def __init__(self, snapshot: FleetSnapshot | None) -> None:
        self.cluster = "lab"
        self.learning = Learning()
        self._snapshot = snapshot
        self._on_snapshot: Callable[[FleetSnapshot], None] | None = None
        self.pieces: list[object] = []
        self.is_stopped = False

    def start(
        self,
        on_snapshot: Callable[[FleetSnapshot], None],
        on_failure: Callable[[BaseException], None],  # noqa: ARG002 - the Protocol's
    ) -> None:
        self._on_snapshot = on_snapshot
        if self._snapshot is not None:
            on_snapshot(self._snapshot)

    def push(self, snapshot: FleetSnapshot) -> None:
        assert self._on_snapshot is not None
        self._on_snapshot(snapshot)

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:  # noqa: ARG002 - the Protocol's
        raise FleetError("E206", "no agent answers on this host", hint="start it", host="gpu01")

    async def stream(
        self,
        work: Callable[[Fleet], AsyncGenerator[T, None]],  # noqa: ARG002 - the Protocol's
    ) -> AsyncGenerator[T, None]:
        for piece in self.pieces:
            yield piece  # type: ignore[misc] # the test fills in what the screen under test expects
        if not self.pieces:
            raise FleetError("E206", "no agent answers on this host", hint="start it", host="gpu01")

    async def stop(self) -> None:
        self.is_stopped = True


def history(host: str, *, seconds: int = 900) -> History[HostRow]:
    """A slow triangle of load, one row every five seconds."""
    found: History[HostRow] = History()
    for second in range(0, seconds, 5):
        load = abs((second % 300) - 150) / 150
        found = found.append(host_row(values.sample(host, at_s=NOW_S - seconds + second, cpu=load)))
    return found


def gpu(index: int, **changes: object) -> DeviceSample:
    sample = DeviceSample(
        id=f"cuda:{index}",
        kind="cuda",
        name="RTX 4090",
        utilisation=Ok(0.82),
        memory_used_bytes=Ok(18.0 * GIB),
        memory_total_bytes=Ok(24.0 * GIB),
        temperature_c=Ok(64.0),
        power_w=Ok(312.0),
        power_limit_w=Ok(450.0),
        sm_clock_hz=Ok(2.52e9),
        memory_clock_hz=Ok(10.5e9),
        ecc_uncorrected=NotAvailable("not supported"),
        ecc_corrected=NotAvailable("not supported"),
        processes=(
            DeviceProcess(pid=4100, user="od", command="rank", memory_bytes=Ok(17.0 * GIB), rank_id="r0s0t0"),
            DeviceProcess(pid=9021, user="bob", command="python train.py", memory_bytes=Ok(1.0 * GIB)),
        ),
    )
    return msgspec.structs.replace(sample, **changes)


def gpu_facts(host: str) -> HostFacts:
    gpus = tuple(
        DeviceFacts(id=f"cuda:{index}", kind="cuda", name="RTX 4090", memory_bytes=24 * GIB, usable_bytes=22 * GIB)
        for index in range(3)
    )
    base = values.facts(host)
    return msgspec.structs.replace(
        base, devices=(*base.devices, *gpus), gpu_unavailable="", driver="570.148", labels={"rack": "a"}
    )


def gpu_sample(host: str) -> HostSample:
    base = values.sample(host, at_s=NOW_S - 1, cpu=0.31, memory_used_bytes=9 * GIB)
    devices = (
        *base.devices,
        gpu(0),
        gpu(1, throttle_reasons=("HW thermal",), temperature_c=Ok(86.0), utilisation=Stale(0.79, 7.0)),
        gpu(
            2,
            utilisation=Lost("GPU is lost (Xid 79)"),
            memory_used_bytes=Lost("GPU is lost (Xid 79)"),
            temperature_c=Lost("GPU is lost (Xid 79)"),
            power_w=Lost("GPU is lost (Xid 79)"),
            xid=(79,),
            processes=(),
        ),
    )
    rank = ProcessSample(
        role="rank", name="chat-3-r0s0t0", pid=4100, rss_bytes=900_000_000, cpu=1.7, num_threads=9, num_fds=31
    )
    return msgspec.structs.replace(base, devices=devices, processes=(*base.processes, rank))


def host(name: str, state: str = "live", **changes: object) -> HostView:
    view = HostView(
        name=name,
        state="live",
        facts=values.facts(name),
        handshake=values.handshake(name),
        sample=values.sample(name, at_s=NOW_S - 1),
        sample_age_s=1.0,
        history=history(name),
    )
    return msgspec.structs.replace(view, state=state, **changes)


def hosts() -> tuple[HostView, ...]:
    return (
        host("cpu01"),
        host("cpu02", "stale", reason="no sample for 12 s", sample_age_s=12.0),
        host("cpu03", "lost", reason="connection lost: reset by peer", sample_age_s=95.0),
        HostView(
            name="cpu04",
            state="unreachable",
            reason="no agent answers on this host",
            way_out="`odctl bootstrap cpu04` installs and starts it",
        ),
        HostView(name="cpu05", state="connecting", reason="waiting for the first sample"),
        host("gpu01", facts=gpu_facts("gpu01"), sample=gpu_sample("gpu01")),
    )


def plan(name: str = "chat", *, split: int = 20) -> Plan:
    """Two stages of 32 layers: gpu01 holds the first, cpu01 the rest."""

    def shard(where: str, device: str, weights: int) -> Shard:
        held = ShardBytes(weights=weights, kv_cache=3_000_000_000, activations=500_000_000, headroom=250_000_000)
        return Shard(
            host=where,
            device=device,
            heads=(0, 32),
            kv_heads=(0, 8),
            columns=(0, 11008),
            vocab=(0, 32000),
            bytes=held,
        )

    return Plan(
        name=name,
        model=ModelRef(name="llama-8b", path="/models/llama-8b", digest="d" * 64, source_host="gpu01"),
        objective=Objective(),
        replicas=(
            Replica(
                stages=(
                    Stage(layers=(0, split), shards=(shard("gpu01", "cuda:0", 10_000_000_000),)),
                    Stage(layers=(split, 32), shards=(shard("cpu01", "cpu", 6_000_000_000),)),
                )
            ),
        ),
        serving=Serving(),
        controllers=("gpu01",),
        predicted=Predicted(
            prompt_tokens=256,
            ttft_s=0.42,
            time_per_token_s=0.031,
            tokens_per_s=210.0,
            bottleneck="replica 0 stage 1 (cpu01/cpu): memory bandwidth",
            stage_s=(0.004, 0.026),
        ),
        cluster="lab",
        why=("cpu01 takes 12 layers because gpu01 alone lacks 4.1 GB",),
    )


def status(**changes: object) -> DeploymentStatus:
    deployed = plan()
    found = DeploymentStatus(
        name="chat",
        generation=3,
        plan_hash=plan_hash(deployed),
        controller="gpu01",
        state="serving",
        reason="",
        way_out="",
        plan_toml=plan_to_toml(deployed),
        listen="127.0.0.1:11434",
        gateway_host="gpu01",
        gateway_socket="/run/gateway.sock",
        applied_at_s=NOW_S - 3600,
        ranks=(_rank("gpu01", "r0s0t0", "cuda:0"), _rank("cpu01", "r0s1t0", "cpu")),
        backend=BackendStatus(
            deployment="chat",
            generation=3,
            plan_hash=plan_hash(deployed),
            state="active",
            running=2,
            queued=1,
            slots=8,
            finished=41,
            failed=0,
            cancelled=1,
            prompt_tokens=12_400,
            generated_tokens=41_200,
            tokens_per_s=57.5,
            ttft_s_p50=0.44,
            ttft_s_p95=0.61,
            time_per_token_s_p50=0.033,
            time_per_token_s_p95=0.041,
        ),
        predicted=deployed.predicted,
        checked=CheckReport(
            is_ok=True, reason="", prompt_tokens=32, ttft_s=0.12, time_per_token_s=0.034, tokens=(1, 2)
        ),
    )
    return msgspec.structs.replace(found, **changes)


def deployment(**changes: object) -> DeploymentView:
    rows: History[DeploymentRow] = History()
    for second in range(0, 300, 2):
        rows = rows.append(
            DeploymentRow(at_s=NOW_S - 300 + second, tokens_per_s=float(second % 60), running=2, queued=0)
        )
    found = status()
    members = (HostAddress(host="gpu01", address="10.0.0.1", port=7433),)
    record = DeploymentRecord(
        name="chat", generation=3, plan_hash=found.plan_hash, controller="gpu01", members=members
    )
    view = DeploymentView(name="chat", record=record, status=found, history=rows)
    return msgspec.structs.replace(view, **changes)


def no_answer() -> ErrorDetail:
    """Why a controller's last word is all there is."""
    return FleetError("E206", "no agent answers on this host", host="gpu01").detail


def faults() -> tuple[Fault, ...]:
    fault = Fault(
        fault_id="F-2",
        kind="device_lost",
        severity="fault",
        observed_at_s=NOW_S - 40,
        observed_by="gpu01",
        host="gpu01",
        deployment="chat",
        generation=3,
        message="cuda:2 fell off the bus",
        evidence={"xid": 79, "nvml": "GPU_IS_LOST"},
        way_out="reboot gpu01, or plan without cuda:2",
    )
    healed = msgspec.structs.replace(
        fault,
        fault_id="F-1",
        kind="rank_lost",
        host="cpu01",
        rank_id="r0s1t0",
        message="rank r0s1t0 was killed (signal 9)",
        observed_at_s=NOW_S - 600,
        healed_at_s=NOW_S - 598.5,
        evidence={"exit_code": -9},
        way_out="",
    )
    return (fault, healed)


def snapshot(**changes: object) -> FleetSnapshot:
    found = FleetSnapshot(
        cluster="lab", taken_at_s=NOW_S, hosts=hosts(), deployments=(deployment(),), faults=faults()
    )
    return msgspec.structs.replace(found, **changes)


def _rank(where: str, rank_id: str, device: str) -> RankView:
    rank_status = RankStatus(
        rank_id=rank_id,
        deployment="chat",
        generation=3,
        pid=4100,
        state="linked",
        loaded_fraction=1.0,
        weight_bytes=10_000_000_000,
        read_bytes=10_000_000_000,
        kv_cache_bytes=3_000_000_000,
        step_port=4000,
        progress=100,
        queued_steps=0,
        steps=900,
        busy_s=12.0,
        tokens=41_200,
    )
    return RankView(host=where, rank_id=rank_id, device=device, status=rank_status)
