"""A SIMULATED fleet: seeded figures of hosts that do not exist, for pictures and for the benchmark of the screens.

It lives beside the tests, outside what is installed, so that no screen of a real fleet can show it; its cluster is
called `simulated`, which stands in the title of every picture.

All frames are made beforehand. What a benchmark measures is then the drawing, not the making of figures.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import DeviceFacts, HostFacts
from agent.facts.fault import Fault
from agent.facts.sample import DeviceSample, HostSample, Lost, NicSample, NotAvailable, Ok
from agent.planner.plan import Predicted
from agent.wire.agent import DeploymentRecord, DeploymentStatus, HostAddress, RankView
from agent.wire.gateway import BackendStatus
from odctl.fleet import Fleet, FleetSnapshot, HostView
from odctl.fleet.digest import host_digest
from odctl.fleet.history import HISTORY_S, DeploymentRow, History, HostRow, host_row
from odctl.fleet.snapshot import DeploymentView, HostState, sorted_faults
from odctl.inventory import Learning

T = TypeVar("T")
CLUSTER = "simulated"
GIB = 1 << 30
GPU_BYTES = 80 * GIB
HOST_BYTES = 1024 * GIB
CORES = 128
HOSTS_PER_RACK = 64
RACKS_PER_SITE = 8
HISTORIES = 64
"""Different pasts; hosts share them, each with a newest row of its own."""
HISTORY_STEP_S = 7.0
TROUBLES: tuple[tuple[HostState, float, str], ...] = (
    ("lost", 0.002, "connection lost: reset by peer"),
    ("unreachable", 0.001, "no agent answers on this host"),
    ("stale", 0.003, "no sample for 9 s"),
    ("connecting", 0.001, "waiting for the first sample"),
)
"""States other than live, the share of hosts in each, and the reason they give."""
_HUNDREDTHS = tuple(Ok(number / 100) for number in range(101))
_DEGREES = tuple(Ok(float(number)) for number in range(130))
_WATTS = tuple(Ok(float(number)) for number in range(751))
_HELD = tuple(Ok(GPU_BYTES * number / 100) for number in range(101))
_TOTAL = Ok(float(GPU_BYTES))
_LIMIT = Ok(700.0)
_CLOCK = Ok(1.755e9)
_NA = NotAvailable("not supported")
_OFF_BUS = Lost("GPU is lost (Xid 79)")


class SimulatedFleet:
    """`frames` snapshots of the same hosts, a second apart. Equal arguments give equal frames."""

    def __init__(self, num_hosts: int, *, seed: int = 1, gpus: int = 8, frames: int = 6, now_s: float) -> None:
        self._random = random.Random(seed)
        self._gpus = gpus
        self._now_s = now_s
        self.names = tuple(f"sim-{number:05d}" for number in range(1, num_hosts + 1))
        self._facts = [self._host_facts(number, name) for number, name in enumerate(self.names)]
        self._states = [self._state() for _ in self.names]
        self._loads = [self._random.betavariate(1.6, 1.1) for _ in self.names]
        self._held = [self._random.uniform(0.2, 0.93) for _ in self.names]
        self._lost_gpus = {
            name: self._random.randrange(gpus) for name in self.names if self._random.random() < 0.001
        }
        self._hot = {name for name in self.names if self._random.random() < 0.004}
        self._pasts = sorted((self._past() for _ in range(HISTORIES)), key=_last_load)
        self._deployments = self._make_deployments()
        self._faults = self._make_faults()
        self.frames: tuple[FleetSnapshot, ...] = tuple(self._frame(number) for number in range(frames))

    def frame(self, tick: int) -> FleetSnapshot:
        """The frame of a tick: to and fro, so that figures change by steps and never jump."""
        if len(self.frames) == 1:
            return self.frames[0]
        turn = 2 * len(self.frames) - 2
        at = tick % turn
        return self.frames[at if at < len(self.frames) else turn - at]

    def _host_facts(self, number: int, name: str) -> HostFacts:
        rack = number // HOSTS_PER_RACK
        gpus = tuple(
            DeviceFacts(
                id=f"cuda:{index}",
                kind="cuda",
                name="Simulated GPU 80G",
                memory_bytes=GPU_BYTES,
                usable_bytes=GPU_BYTES,
            )
            for index in range(self._gpus)
        )
        cpu = DeviceFacts(
            id="cpu",
            kind="cpu",
            name="Simulated CPU",
            memory_bytes=HOST_BYTES,
            usable_bytes=HOST_BYTES,
            cores=CORES,
        )
        return HostFacts(
            name=name,
            cluster_address="192.0.2.1",
            cluster_port=7001,
            devices=(cpu, *gpus),
            memory_bytes=HOST_BYTES,
            cpu_cores=CORES,
            driver="simulated",
            labels={"rack": f"r{rack:02d}", "site": f"s{rack // RACKS_PER_SITE + 1}"},
        )

    def _state(self) -> HostState:
        drawn = self._random.random()
        for state, share, _ in TROUBLES:
            if drawn < share:
                return state
            drawn -= share
        return "live"

    def _past(self) -> History[HostRow]:
        """Fifteen minutes of one of the pasts, a row every HISTORY_STEP_S."""
        load = self._random.random()
        found: History[HostRow] = History()
        for step in range(int(HISTORY_S / HISTORY_STEP_S)):
            load = min(1.0, max(0.0, load + self._random.gauss(0, 0.08)))
            found = found.append(
                HostRow(
                    at_s=self._now_s - HISTORY_S + step * HISTORY_STEP_S,
                    cpu=load * 0.4,
                    memory=0.3 + load * 0.2,
                    gpu=load,
                    gpu_memory=0.2 + load * 0.7,
                    power_w=self._gpus * (90 + load * 560),
                    received_bytes_per_s=load * 2e10,
                    sent_bytes_per_s=load * 1.8e10,
                )
            )
        return found

    def _frame(self, number: int) -> FleetSnapshot:
        hosts = tuple(self._host(index, name, number) for index, name in enumerate(self.names))
        return FleetSnapshot(
            cluster=CLUSTER,
            taken_at_s=self._now_s,
            hosts=hosts,
            deployments=self._deployments,
            faults=self._faults,
        )

    def _host(self, index: int, name: str, number: int) -> HostView:
        state = self._states[index]
        if state in {"unreachable", "connecting"}:
            reason = next(reason for found, _, reason in TROUBLES if found == state)
            return HostView(name=name, state=state, reason=reason)
        if state == "live":
            self._loads[index] = min(1.0, max(0.0, self._loads[index] + self._random.gauss(0, 0.025)))
        sample = self._sample(index, name, self._now_s + number)
        reason = next((reason for found, _, reason in TROUBLES if found == state), "")
        return HostView(
            name=name,
            state=state,
            reason=reason,
            facts=self._facts[index],
            sample=sample,
            sample_age_s=1.0 if state == "live" else 9.0 if state == "stale" else 95.0,
            history=self._pasts[int(self._loads[index] * (HISTORIES - 1))].append(host_row(sample)),
            digest=host_digest(sample),
        )

    def _sample(self, index: int, name: str, at_s: float) -> HostSample:
        load, held = self._loads[index], self._held[index]
        return HostSample(
            host=name,
            taken_at_s=at_s,
            cpu=load * 0.4,
            load_1m=load * CORES * 0.4,
            memory_total_bytes=HOST_BYTES,
            memory_used_bytes=int(HOST_BYTES * (0.3 + held * 0.4)),
            swap_total_bytes=0,
            swap_used_bytes=0,
            uptime_s=1_036_800.0,
            devices=self._devices(name, load, held),
            nics=(
                NicSample(
                    name="ib0",
                    is_up=True,
                    speed_bits_per_s=4e11,
                    received_bytes_per_s=load * 2e10,
                    sent_bytes_per_s=load * 1.8e10,
                    errors=0,
                    drops=0,
                ),
            ),
        )

    def _devices(self, name: str, load: float, held: float) -> tuple[DeviceSample, ...]:
        lost = self._lost_gpus.get(name)
        out = []
        for gpu in range(self._gpus):
            busy = min(1.0, max(0.0, load + self._random.uniform(-0.06, 0.06)))
            is_hot = gpu == 0 and name in self._hot
            is_lost = gpu == lost
            out.append(
                DeviceSample(
                    id=f"cuda:{gpu}",
                    kind="cuda",
                    name="Simulated GPU 80G",
                    utilisation=_OFF_BUS if is_lost else _HUNDREDTHS[round(busy * 100)],
                    memory_used_bytes=_OFF_BUS if is_lost else _HELD[round(held * 100)],
                    memory_total_bytes=_TOTAL,
                    temperature_c=_OFF_BUS if is_lost else _DEGREES[round(34 + busy * 38) + (18 if is_hot else 0)],
                    power_w=_OFF_BUS if is_lost else _WATTS[round(90 + busy * 560)],
                    power_limit_w=_LIMIT,
                    sm_clock_hz=_CLOCK,
                    memory_clock_hz=_NA,
                    throttle_reasons=("thermal (hardware)",) if is_hot else (),
                    xid=(79,) if is_lost else (),
                )
            )
        return tuple(out)

    def _make_deployments(self) -> tuple[DeploymentView, ...]:
        """Four, on the first hosts, a replica of eight hosts each; the last one heals."""
        views = []
        for number in range(min(4, len(self.names) // 8)):
            members = self.names[number * 8 : number * 8 + 8]
            views.append(self._deployment(f"sim-model-{number + 1}", members, is_healing=number == 3))
        return tuple(views)

    def _deployment(self, name: str, members: Sequence[str], *, is_healing: bool) -> DeploymentView:
        rate = self._random.uniform(900, 2600)
        history: History[DeploymentRow] = History()
        for step in range(int(HISTORY_S / 5)):
            rate = max(50.0, rate + self._random.gauss(0, 60))
            at_s = self._now_s - HISTORY_S + step * 5
            history = history.append(DeploymentRow(at_s=at_s, tokens_per_s=rate, running=24, queued=2))
        record = DeploymentRecord(
            name=name,
            generation=1,
            plan_hash="0" * 64,
            controller=members[0],
            members=tuple(HostAddress(host=host, address="192.0.2.1", port=7433) for host in members),
        )
        status = DeploymentStatus(
            name=name,
            generation=1,
            plan_hash="0" * 64,
            controller=members[0],
            state="healing" if is_healing else "serving",
            reason="a rank is being restarted" if is_healing else "",
            way_out="",
            plan_toml="",
            listen="127.0.0.1:11434",
            gateway_host=members[0],
            gateway_socket="",
            applied_at_s=self._now_s - 7200,
            ranks=tuple(
                RankView(host=host, rank_id=f"r0s{stage}t0", device="cuda:0", status=None)
                for stage, host in enumerate(members)
            ),
            backend=BackendStatus(
                deployment=name,
                generation=1,
                plan_hash="0" * 64,
                state="active",
                running=24,
                queued=2,
                slots=32,
                finished=4100,
                failed=0,
                cancelled=3,
                prompt_tokens=1_240_000,
                generated_tokens=4_120_000,
                tokens_per_s=rate,
                ttft_s_p50=0.44,
                ttft_s_p95=0.61,
                time_per_token_s_p50=0.033,
                time_per_token_s_p95=0.041,
            ),
            predicted=Predicted(
                prompt_tokens=256, ttft_s=0.42, time_per_token_s=0.031, tokens_per_s=2100.0, bottleneck=""
            ),
            checked=None,
        )
        return DeploymentView(name=name, record=record, status=status, history=history)

    def _make_faults(self) -> tuple[Fault, ...]:
        """An open fault of every GPU that is gone."""
        found = {
            f"F-{number}": Fault(
                fault_id=f"F-{number}",
                kind="device_lost",
                severity="fault",
                observed_at_s=self._now_s - 40 - number,
                observed_by=name,
                host=name,
                message=f"cuda:{gpu} fell off the bus (Xid 79)",
                way_out=f"reboot {name}, or plan without it",
            )
            for number, (name, gpu) in enumerate(self._lost_gpus.items(), start=1)
        }
        return sorted_faults(found)


def _last_load(past: History[HostRow]) -> float:
    """How busy a past ends: hosts take the one that ends nearest to their own load."""
    return past.last.gpu or 0.0 if past.last is not None else 0.0


class SimulatedFeed:
    """Hands an app a frame a second, from a thread of its own as the real feed does."""

    def __init__(self, fleet: SimulatedFleet, *, interval_s: float = 1.0) -> None:
        self.cluster = CLUSTER
        self.learning = Learning()
        self._fleet = fleet
        self._interval_s = interval_s
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self, on_snapshot: Callable[[FleetSnapshot], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        def run() -> None:
            try:
                tick, due_s = 0, time.monotonic()
                while True:
                    on_snapshot(msgspec.structs.replace(self._fleet.frame(tick), taken_at_s=time.time()))
                    tick += 1
                    # However long a frame takes to hand over, as many come; none twice to make up for a late one.
                    due_s = max(time.monotonic(), due_s + self._interval_s)
                    if self._is_stopped.wait(due_s - time.monotonic()):
                        return
            except Exception as error:  # as the real feed's: the app says so and ends
                on_failure(error)

        self._thread = threading.Thread(target=run, name="simulated fleet", daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:  # noqa: ARG002 - the Protocol's
        raise FleetError("E206", "this fleet is simulated: nobody answers", hint="open a real inventory")

    async def stream(self, work: Callable[[Fleet], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        nothing: tuple[T, ...] = ()
        for item in nothing:
            yield item
        await self.call(lambda fleet: anext(work(fleet)))

    async def stop(self) -> None:
        self._is_stopped.set()
