"""What was learnt and probed, invented, for the screens that show it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

import msgspec

from agent.errors import ErrorDetail
from agent.facts.probe import LinkProbe
from agent.planner.advise import DriftAlarm
from agent.planner.learning.course import course_of
from agent.planner.learning.records import Figures, Lesson, PlanChosen, PlanMeasured
from agent.planner.learning.state import replay
from agent.planner.learning.summary import regret_so_far, summarise
from agent.planner.learning.workload import Context
from odctl.fleet import Fleet, FleetSnapshot
from odctl.inventory import Learning
from odctl.learning import Change, LearningReport
from tests.agent.facts.probes import device_probe, group_probe, record_of
from tests.odctl.tui import frozen_fleet as frozen

T = TypeVar("T")
LATENCY_S = {("cpu01", "cpu02"): 60e-6, ("cpu01", "gpu01"): 90e-6, ("cpu02", "gpu01"): 2.4e-3}
RATES = {("cpu01", "cpu02"): 1.1e9, ("cpu01", "gpu01"): 9e8, ("cpu02", "gpu01"): 1.1e7}


class AnsweringFeed(frozen.FrozenFeed):
    """Answers every call with what it was given, as the fleet's thread would."""

    def __init__(self, snapshot: FleetSnapshot, answer: object) -> None:
        super().__init__(snapshot)
        self.answer = answer

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:  # noqa: ARG002 - the Protocol's
        return cast("T", self.answer)


def _chosen(at_s: float, arm: str, generation: int, predicted_s: float, propensity: float = 1.0) -> Lesson:
    return _lesson(
        at_s,
        generation,
        PlanChosen(
            model="llama-8b",
            arm=arm,
            asked="adaptive",
            objective="latency",
            propensity=propensity,
            predicted=Figures(time_per_token_s=predicted_s, ttft_s=0.2, tokens_per_s=40.0),
        ),
    )


def _measured(at_s: float, arm: str, generation: int, predicted_s: float, measured_s: float) -> Lesson:
    return _lesson(
        at_s,
        generation,
        PlanMeasured(
            model="llama-8b",
            arm=arm,
            context=Context(prompt_tokens=120, output_tokens=60, batch=1.0, num_layers=32, weight_bytes=16e9),
            predicted=Figures(time_per_token_s=predicted_s, ttft_s=0.2, tokens_per_s=40.0),
            measured=Figures(time_per_token_s=measured_s, ttft_s=0.25, tokens_per_s=31.0),
            slots=8,
            finished=19,
            failed=1,
            busy_s=20.0,
            observed_s=40.0,
        ),
    )


def _lesson(at_s: float, generation: int, what: PlanChosen | PlanMeasured) -> Lesson:
    name = f"{generation:02d}" * 32
    return Lesson(at_s=at_s, deployment="chat", generation=generation, plan_hash=name, what=what)


def lessons() -> list[Lesson]:
    """A pipeline that kept its promise, a tensor-parallel pair that did not, and one that nobody has asked yet."""
    now_s = frozen.NOW_S
    found = [_chosen(now_s - 7200, "pipeline 2", 1, 0.030)]
    found += [_measured(now_s - 7000 + 60 * i, "pipeline 2", 1, 0.030, 0.029 + 0.002 * (i % 3)) for i in range(6)]
    found.append(_chosen(now_s - 3600, "tensor 2", 2, 0.025, 0.31))
    found += [_measured(now_s - 3500 + 60 * i, "tensor 2", 2, 0.025, 0.041 + 0.003 * (i % 2)) for i in range(4)]
    found.append(_chosen(now_s - 60, "pipeline 3", 3, 0.033))
    return found


def report(**changes: object) -> LearningReport:
    """What these lessons add up to."""
    now_s = frozen.NOW_S
    state = replay(lessons())
    rows = summarise(state)
    found = LearningReport(
        settings=Learning(explore=True, protected=("prod",)),
        weights=state.weights,
        strategies=rows,
        history=state.selections,
        measurements=course_of(lessons()),
        regret=regret_so_far(rows),
        alarms=(DriftAlarm(at_s=now_s - 3000, deployment="chat", arm="tensor 2", ratio=1.72),),
        changes=(Change(plan_hash="02" * 32, since_s=now_s - 3100),),
        num_runs=12,
    )
    return msgspec.structs.replace(found, **changes)


def silent(report_: LearningReport, *hosts: str) -> LearningReport:
    why = ErrorDetail(code="E206", message="no agent answers on this host", hint="")
    return msgspec.structs.replace(report_, missing=dict.fromkeys(hosts, why))


def snapshot(*, carriers: Sequence[str] = ("tls",)) -> FleetSnapshot:
    """Three hosts whose links were measured; the link of cpu02 and gpu01 is a bad one."""
    base = frozen.snapshot()
    hosts = []
    for host in base.hosts:
        if host.facts is None or host.name == "cpu03":
            hosts.append(host)
            continue
        links = tuple(
            _link(pair, host.name, carrier) for carrier in carriers for pair in LATENCY_S if host.name in pair
        )
        groups = tuple(
            group_probe(host.facts, other.facts, small_s=4e-4, large_s=2e-3)
            for other in base.hosts
            if other.facts is not None and other.name > host.name and other.name != "cpu03"
        )
        record = record_of(host.facts, device_probe(measured_at_s=frozen.NOW_S - 300), links=links, groups=groups)
        hosts.append(msgspec.structs.replace(host, probes=record))
    return msgspec.structs.replace(base, hosts=tuple(hosts))


def _link(pair: tuple[str, str], source: str, carrier: str) -> LinkProbe:
    target = pair[1] if pair[0] == source else pair[0]
    return LinkProbe(
        source=source,
        target=target,
        source_device="cpu",
        target_device="cpu",
        carrier=carrier,  # type: ignore[arg-type] # the tests' own words
        latency_s=LATENCY_S[pair],
        bytes_per_s=RATES[pair] * (2 if carrier == "tcp" else 1),
        streamed_bytes=1 << 20,
        measured_at_s=frozen.NOW_S - 300,
    )
