"""Links as ranks use them, measured: the same carriers, met at the same rendezvous, between processes like ranks.

Of two members each one's round trips and stream are timed by itself, so that both directions are known; all-reduces
stand between products, as in a layer. Every member performs a group's turns in the same order, and what decides how
many there are is itself summed over the group, so that nobody waits for a turn that another one does not take.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from datetime import timedelta
from typing import assert_never

import torch
from torch import Tensor

from agent.engine.links.carrier import Carrier
from agent.engine.links.gloo import GlooCarrier
from agent.engine.links.meeting import Meeting
from agent.engine.links.nccl import NcclCarrier
from agent.engine.links.stream import StreamCarrier
from agent.engine.store import AgentStore
from agent.errors import FleetError
from agent.facts.probe import GroupProbe, LinkProbe, SumProbe
from agent.wire.probe import LinkFailure, LinkProbeConfig, LinkReport, LinkStep

log = logging.getLogger(__name__)

START_LIMIT_S = 30.0
"""For the others' processes, which load torch first: who is not there by then is not waited for any more."""
MEET_LIMIT_S = 12.0
"""For the others to end their steps before; after that they are taken for gone."""
STEP_LIMIT_S = 10.0
WARM_UP = 10
ROUND_TRIPS = 100
SUMS = 200
"""At most. One in twenty takes many times as long as the others: the mean of forty was wrong by a third."""
STREAMS = 3
TRIAL_BYTES = 256 << 10
MESSAGE_BYTES = 16
_PRODUCT_ROWS = 256


def measure_links(config: LinkProbeConfig) -> LinkReport:
    """All steps of this seat, in order. One that fails is named, and its members are not waited for again."""
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    host = config.seat.partition("/")[0]
    links: list[LinkProbe] = []
    groups: list[GroupProbe] = []
    failures: list[LinkFailure] = []
    lost = _absent(config)
    with torch.inference_mode():
        for step in config.order.steps:
            if config.seat not in step.members:
                continue
            missing = sorted(lost.intersection(step.members))
            try:
                if missing:
                    raise RuntimeError(f"{', '.join(missing)} did not come")
                _wait_turn(config, step)
                _measure(config, step, links, groups)
            except (RuntimeError, FleetError) as error:
                reason = error.message if isinstance(error, FleetError) else str(error)
                log.warning("link not measured", extra={"step": step.name, "reason": reason})
                failures.append(LinkFailure(members=step.members, message=reason))
                lost.update(member for member in step.members if member != config.seat)
            finally:
                with contextlib.suppress(FleetError):  # without a keeper nobody waits for it either
                    _store(config, step.name, limit_s=MEET_LIMIT_S).set("done", b"1")
    return LinkReport(host=host, links=tuple(links), groups=tuple(groups), failures=tuple(failures))


def _absent(config: LinkProbeConfig) -> set[str]:
    """Wait until all seats are there; those that are not within the limit."""
    seats = {member for step in config.order.steps for member in step.members} - {config.seat}
    store = _store(config, "seats", limit_s=START_LIMIT_S + MEET_LIMIT_S)
    store.set(config.seat, b"1")
    try:
        store.wait(sorted(seats), timedelta(seconds=START_LIMIT_S))
    except FleetError:
        return {seat for seat in seats if not store.check([seat])}
    return set()


def _wait_turn(config: LinkProbeConfig, step: LinkStep) -> None:
    for name in step.after:
        with contextlib.suppress(FleetError):  # it ended without a word: the machine is as free as it will be
            store = _store(config, name, limit_s=MEET_LIMIT_S)
            store.wait(["done"], timedelta(seconds=MEET_LIMIT_S))


def _measure(config: LinkProbeConfig, step: LinkStep, links: list[LinkProbe], groups: list[GroupProbe]) -> None:
    index = step.members.index(config.seat)
    carrier = _meet(config, step, index)
    try:
        turns = _Turns(carrier, index=index, size=len(step.members), device=_device(config), span_s=_span(config))
        turns.gather()
        if turns.size == 2:
            links.append(_link(config, step, turns))
        sums = tuple(turns.sum_of(num_bytes) for num_bytes in config.order.sizes.sum_bytes)
        if index == 0:
            groups.append(
                GroupProbe(
                    members=step.members,
                    carrier=step.carrier,
                    sums=sums,
                    measured_at_s=time.time(),
                    hardware=tuple(config.order.hardware[_host(member)] for member in step.members),
                )
            )
        _part(config, step, index)
    finally:
        carrier.close()


def _part(config: LinkProbeConfig, step: LinkStep, index: int) -> None:
    """Nobody closes its connections while another still reads from them: of a sum, one member is through first."""
    store = _store(config, step.name, limit_s=MEET_LIMIT_S)
    store.set(f"through-{index}", b"1")
    through = [f"through-{each}" for each in range(len(step.members))]
    with contextlib.suppress(FleetError):  # a member that failed says so itself; what was measured here stands
        store.wait(through, timedelta(seconds=STEP_LIMIT_S))


def _link(config: LinkProbeConfig, step: LinkStep, turns: _Turns) -> LinkProbe:
    """From this member to the other one."""
    other = step.members[1 - turns.index]
    latency_s = turns.latency_s()
    bytes_per_s, streamed_bytes = turns.stream(config.order.sizes.link_bytes, latency_s)
    source, _, source_device = config.seat.partition("/")
    target, _, target_device = other.partition("/")
    return LinkProbe(
        source=source,
        target=target,
        source_device=source_device,
        target_device=target_device,
        carrier=step.carrier,
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        streamed_bytes=streamed_bytes,
        measured_at_s=time.time(),
        source_hardware=config.order.hardware[source],
        target_hardware=config.order.hardware[target],
    )


LEAST_SHARE = 0.1
"""Of a crossing, what its bytes take at least."""


class _Turns:
    """What the members of one carrier do together."""

    def __init__(self, carrier: Carrier, *, index: int, size: int, device: torch.device, span_s: float) -> None:
        self.index = index
        self.size = size
        self._carrier = carrier
        self._device = device
        self._span_s = span_s

    def gather(self) -> None:
        """Nobody goes on before all are here."""
        self._carrier.all_reduce(torch.zeros(1, device=self._device))

    def mean(self, value: float) -> float:
        """Of what the members say, the same for all of them."""
        total = self._carrier.all_reduce(torch.tensor([value], dtype=torch.float32, device=self._device))
        return float(total[0]) / self.size

    def as_first_says(self, value: int) -> int:
        """The first member's figure: means differ in their last bits, for three members add up in three orders."""
        own = float(value) if self.index == 0 else 0.0
        total = self._carrier.all_reduce(torch.tensor([own], dtype=torch.float32, device=self._device))
        return int(total[0])

    def latency_s(self) -> float:
        """Half of a round trip that this member begins, its median."""
        message = torch.ones(MESSAGE_BYTES, dtype=torch.uint8, device=self._device)
        own = 0.0
        for first in (0, 1):
            times = []
            for _ in range(WARM_UP + ROUND_TRIPS):
                before = time.perf_counter()
                if self.index == first:
                    self._carrier.send(message, 1 - first).wait()
                self._carrier.receive((MESSAGE_BYTES,), torch.uint8, 1 - self.index)
                if self.index != first:
                    self._carrier.send(message, first).wait()
                times.append(time.perf_counter() - before)
            if self.index == first:
                own = statistics.median(times[WARM_UP:]) / 2
        return own

    def stream(self, most_bytes: int, latency_s: float) -> tuple[float, int]:
        """Bytes/s from this member to the other one, and the bytes of one message."""
        trial_s = self.mean(self._crossing_s(TRIAL_BYTES, latency_s))
        trial_s = self.mean(self._crossing_s(TRIAL_BYTES, latency_s))
        fitting = int(TRIAL_BYTES * self._span_s / trial_s)
        num_bytes = min(most_bytes, max(TRIAL_BYTES, fitting))
        seconds = statistics.median(self._crossing_s(num_bytes, latency_s) for _ in range(STREAMS))
        return num_bytes / seconds, num_bytes

    def _crossing_s(self, num_bytes: int, latency_s: float) -> float:
        """Each sends once; the receiver's answer tells the sender when all has come."""
        message = torch.ones(num_bytes, dtype=torch.uint8, device=self._device)
        answer = torch.ones(1, dtype=torch.uint8, device=self._device)
        own = 0.0
        for sender in (0, 1):
            if self.index != sender:
                self._carrier.receive((num_bytes,), torch.uint8, sender)
                self._carrier.send(answer, sender).wait()
                continue
            before = time.perf_counter()
            sending = self._carrier.send(message, 1 - sender)
            self._carrier.receive((1,), torch.uint8, 1 - sender)
            crossed_s = time.perf_counter() - before
            # A latency that was measured beside other load may be as long as all of this.
            own = max(crossed_s - 2 * latency_s, LEAST_SHARE * crossed_s)
            sending.wait()
        return own

    def sum_of(self, num_bytes: int) -> SumProbe:
        """The members' mean of their mean time in an all-reduce of bf16, without the slowest twentieth.

        Not the median: a step waits for all of its sums, also for those in which another member had lost its core.
        """
        partial = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device=self._device)
        rows = torch.ones((_PRODUCT_ROWS, _PRODUCT_ROWS), device=self._device)
        trial_s = self.mean(max(self._sum_s(partial, rows), self._sum_s(partial, rows)))
        # Agreed upon: who counts one less would close its connections while the others wait for another sum.
        repeats = self.as_first_says(max(3, min(SUMS, int(2 * self._span_s / trial_s))))
        times = sorted(self._sum_s(partial, rows) for _ in range(repeats))
        kept = times[: max(1, len(times) - len(times) // 20)]
        return SumProbe(num_bytes=num_bytes, seconds=self.mean(statistics.fmean(kept)))

    def _sum_s(self, partial: Tensor, rows: Tensor) -> float:
        product = rows @ rows
        self._finish(product)
        before = time.perf_counter()
        self._finish(self._carrier.all_reduce(partial))
        return time.perf_counter() - before

    def _finish(self, tensor: Tensor) -> None:
        if tensor.device.type == "cuda":
            torch.cuda.synchronize(tensor.device)


def _meet(config: LinkProbeConfig, step: LinkStep, index: int) -> Carrier:
    """Blocks until every member does the same. Raises RuntimeError, or FleetError from the store."""
    deadline = time.monotonic() + MEET_LIMIT_S
    store = _store(config, step.name, limit_s=MEET_LIMIT_S)
    device, size = _device(config), len(step.members)
    match step.carrier:
        case "nccl":
            return NcclCarrier(store=store, index=index, size=size, timeout_s=MEET_LIMIT_S, device=device)
        case "gloo":
            return GlooCarrier(
                store=store,
                index=index,
                size=size,
                address=config.address,
                timeout_s=MEET_LIMIT_S,
                device=device,
                except_port=0,
                step_timeout_s=STEP_LIMIT_S,
            )
        case "tls" | "tcp" | "unix":
            meeting = Meeting(
                store=store,
                index=index,
                size=size,
                kind=step.carrier,
                address=config.address,
                cluster=config.cluster,
                host=_host(config.seat),
                tls=config.tls,
                deadline=deadline,
            )
            return StreamCarrier(meeting.meet(), index=index, size=size, device=device, timeout_s=STEP_LIMIT_S)
        case _:
            assert_never(step.carrier)


def _store(config: LinkProbeConfig, step: str, *, limit_s: float) -> AgentStore:
    return AgentStore(
        agent_socket=config.agent_socket,
        controller=config.order.keeper,
        prefix=f"{config.order.probe_id}/1/{step}",
        deadline=time.monotonic() + limit_s,
    )


def _host(seat: str) -> str:
    return seat.partition("/")[0]


def _device(config: LinkProbeConfig) -> torch.device:
    return torch.device(config.seat.partition("/")[2])


def _span(config: LinkProbeConfig) -> float:
    return config.order.sizes.span_s
