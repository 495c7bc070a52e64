"""Plans measured on the real cluster, one after the other: applied, put under the same load, and taken away again.

What serves is never touched: where a deployment of a plan's name is there, the plan gets a name and an address of
its own for the while, and it is refused where it finds no room beside what serves.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.facts.cluster import ClusterFacts
from agent.planner.beside import memory_beside, shared_hosts
from agent.planner.file import plan_from_toml, plan_hash
from agent.planner.measured import Measured, Spread, is_of_load
from agent.planner.plan import Plan, Predicted
from agent.planner.predict import predict_plan
from agent.planner.words import list_words
from agent.wire.agent import ApplyEvent
from agent.wire.history import GenerationHistory
from odctl.apply import ApplyPreview, destroy, preview_apply
from odctl.bench.load import TUNNEL_CONCURRENCY, Lengths, Load, check_load
from odctl.bench.measure import Distribution, Figures, Objectives
from odctl.bench.run import Measurement, Settings
from odctl.bench.server import find_server
from odctl.deployments import FleetDeployments, read_deployments
from odctl.fleet import Fleet
from odctl.following import Presses, apply_interruptibly, until_pressed

Tell = Callable[[str], None]

DEFAULT_REQUESTS = 40
"""Requests count as evidence for the next plan from 32 on."""
DEFAULT_OUTPUT_TOKENS = 64
WARM_UP = 2
OWN_PORTS = (21000, 29999)
"""Where measured plans listen that have an address of their own: below the ports that systems hand out."""
MEASURE_MARK = "-measure-"
"""In the names of deployments that stand for a measurement alone."""
ANSWER_TIMEOUT_S = 600.0
EVIDENCE_TIMEOUT_S = 8.0
"""The controller writes down what a load was when it has been over for a second."""
REMOVAL_TIMEOUT_S = 120.0
POLL_S = 0.2


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A plan ready to be measured. `preview` is of the plan as it is applied: perhaps under another name."""

    label: str
    plan: Plan
    preview: ApplyPreview

    @property
    def deployment(self) -> str:
        return self.preview.plan.name


class TrialLoads(msgspec.Struct, frozen=True, kw_only=True):
    """The same for every plan: requests one at a time, then `full.concurrency` at a time."""

    alone: Load
    full: Load


class TrialOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one plan, as far as it came."""

    label: str
    deployment: str
    plan_hash: str
    """Of the plan that was given."""
    applied_hash: str
    """Of what was applied, which may have another name: what evidence and history know it by."""
    generation: int = 0
    apply_s: float | None = None
    alone: Figures | None = None
    full: Figures | None = None
    evidence: int = 0
    """Measurements that its controller has journalled."""
    error: ErrorDetail | None = None
    is_interrupted: bool = False

    @property
    def num_failed(self) -> int:
        return sum(each.num_failed for each in (self.alone, self.full) if each is not None)


def trial_loads(
    plans: Sequence[Plan],
    *,
    requests: int | None,
    concurrency: int | None,
    prompt_tokens: int | None,
    max_tokens: int | None,
) -> TrialLoads:
    """Where nothing is asked for: what the first plan is predicted for, and the least full batch.

    Raises E118 for a load that cannot be, or that a plan's context is too short for.
    """
    context = min(plan.serving.context for plan in plans)
    predicted = plans[0].predicted
    answers = predicted.answer_tokens or DEFAULT_OUTPUT_TOKENS
    output = max_tokens if max_tokens is not None else max(2, min(answers, context // 2))
    wanted = prompt_tokens if prompt_tokens is not None else predicted.prompt_tokens
    prompt = wanted if prompt_tokens is not None else max(1, min(wanted, context - output))
    if output < 2:
        raise FleetError("E118", f"{output} tokens of answer: time per token needs at least 2")
    if prompt + output > context:
        raise FleetError(
            "E118",
            f"prompts of {prompt} tokens and answers of {output} do not fit the context of {context}",
            hint=f"--prompt-tokens and --max-tokens of {context} together at most",
        )
    batch = min(plan.serving.batch * len(plan.replicas) for plan in plans)
    clients = concurrency if concurrency is not None else min(batch, TUNNEL_CONCURRENCY)
    if clients > TUNNEL_CONCURRENCY:
        raise FleetError(
            "E118", f"{clients} at a time: the way through a host's transport carries {TUNNEL_CONCURRENCY}"
        )
    alone = Load(
        arrivals="closed",
        concurrency=1,
        rate_per_s=0.0,
        num_requests=requests if requests is not None else DEFAULT_REQUESTS,
        duration_s=None,
        prompt=Lengths(low=prompt, high=prompt),
        output=Lengths(low=output, high=output),
        seed=random.randrange(1_000_000),
    )
    full = msgspec.structs.replace(alone, concurrency=clients, seed=alone.seed + 1)
    check_load(alone)
    check_load(full)
    return TrialLoads(alone=alone, full=full)


def predicted_load_s(plan: Plan, loads: TrialLoads) -> float:
    """Seconds that both loads should take, for people who are asked whether they want it."""
    predicted, alone, full = plan.predicted, loads.alone, loads.full
    assert alone.num_requests is not None
    assert full.num_requests is not None
    output = alone.output.low
    one_s = predicted.ttft_s + (output - 1) * predicted.time_per_token_s
    rate = predicted.tokens_per_s * min(1.0, full.concurrency / (plan.serving.batch * len(plan.replicas)))
    return alone.num_requests * one_s + full.num_requests * (predicted.ttft_s + output / max(rate, 1e-9))


def load_prediction(trial: Trial, facts: ClusterFacts, loads: TrialLoads) -> Predicted | None:
    """What the plan should do under these loads, on these facts; None where its own prediction is of them."""
    plan, clients = trial.plan, loads.full.concurrency
    prompt, answer = loads.alone.prompt.low, loads.alone.output.low
    if is_of_load(plan, prompt_tokens=prompt, answer_tokens=answer, concurrency=clients):
        return None
    serving = msgspec.structs.replace(plan.serving, batch=max(1, -(-clients // len(plan.replicas))))
    predicted = msgspec.structs.replace(plan.predicted, prompt_tokens=prompt, answer_tokens=answer)
    asked = msgspec.structs.replace(plan, serving=serving, predicted=predicted)
    return predict_plan(asked, trial.preview.manifest.spec, facts)


async def ready_trials(
    fleet: Fleet, plans: Sequence[Plan], labels: Sequence[str], *, cluster: str, named_hosts: Collection[str]
) -> tuple[Trial, ...]:
    """Hold every plan against the fleet before any is applied.

    Raises E501 naming what serves on a host that `named_hosts` does not have, E601 where memory does not suffice
    beside what serves, and all that `odctl apply` refuses.
    """
    deployments = await read_deployments(fleet)
    if deployments.pending:
        record = deployments.pending[0]
        raise FleetError(
            "E501", f"a first apply of {record.name} by {record.lock_holder} is under way", hint="wait for its end"
        )
    serving = _serving_plans(deployments)
    trials = []
    for plan, label in zip(plans, labels, strict=True):
        preview = await preview_apply(fleet, _apart(plan, serving), cluster=cluster)
        shared = {host: names for host, names in shared_hosts(plan, serving).items() if host not in named_hosts}
        if shared:
            served = sorted({name for names in shared.values() for name in names})
            raise FleetError(
                "E501",
                f"{label} needs {list_words(list(shared))}, where {list_words(served)} serves: both would suffer",
                hint=f"--hosts {','.join(shared)} measures there all the same{_left_over(served)}",
                host=next(iter(shared)),
            )
        problems = memory_beside(plan, serving, preview.facts)
        if problems:
            first = problems[0]
            more = f" (and {len(problems) - 1} more devices)" if len(problems) > 1 else ""
            raise FleetError(
                first.code, f"{label}: {first.path}: {first.message}{more}", hint=first.way_out, host=first.host
            )
        trials.append(Trial(label=label, plan=plan, preview=preview))
    return tuple(trials)


async def measure_trials(
    fleet: Fleet, trials: Sequence[Trial], loads: TrialLoads, *, presses: Presses, tell: Tell
) -> tuple[TrialOutcome, ...]:
    """Each plan in turn; the first one that fails, or Ctrl-C, ends it. Whatever comes, each is taken away again."""
    outcomes = []
    for trial in trials:
        outcome = await _measure(fleet, trial, loads, presses=presses, tell=tell)
        outcomes.append(outcome)
        if outcome.error is not None or outcome.is_interrupted:
            break
    return tuple(outcomes)


async def standing(fleet: Fleet) -> dict[str, tuple[int, str]]:
    """Generation and plan of every deployment there is: what must be the same afterwards."""
    found = await read_deployments(fleet)
    return {sight.record.name: (sight.record.generation, sight.record.plan_hash) for sight in found.deployments}


def measured_of(outcome: TrialOutcome, loads: TrialLoads) -> Measured | None:
    """The figures that predictions are held against; None when nothing was answered at all."""
    alone, clients = outcome.alone, loads.full.concurrency
    full = outcome.full if clients > 1 else alone
    if alone is None or not alone.num_answered:
        return None
    return Measured(
        prompt_tokens=alone.mean_prompt_tokens,
        answer_tokens=alone.mean_output_tokens,
        concurrency=clients,
        ttft_s=_spread(alone.ttft_s),
        time_per_token_s=_spread(alone.tpot_s),
        throughput=_rate(full, clients) if full is not None else None,
    )


async def _measure(fleet: Fleet, trial: Trial, loads: TrialLoads, *, presses: Presses, tell: Tell) -> TrialOutcome:
    """One plan from its apply to its end."""
    outcome = TrialOutcome(
        label=trial.label,
        deployment=trial.deployment,
        plan_hash=plan_hash(trial.plan),
        applied_hash=trial.preview.plan_hash,
    )
    alone = Measurement(_settings(loads.alone), tell=tell)
    full = Measurement(_settings(loads.full), tell=tell)
    try:
        tell(f"{trial.label}: applied as {trial.deployment} on {list_words(trial.plan.hosts)}")
        began_s = time.monotonic()
        last = await apply_interruptibly(
            fleet, trial.preview, presses=presses, cause="measure", reason=f"compare --measure of {trial.label}"
        )
        assert last is not None, "it is not detached"
        outcome = msgspec.structs.replace(outcome, generation=last.generation, apply_s=time.monotonic() - began_s)
        if presses.count:
            # It had switched when Ctrl-C came: the apply went on, the measurement does not.
            raise KeyboardInterrupt
        evidence = await until_pressed(_load(fleet, trial, alone, full), presses)
        outcome = msgspec.structs.replace(outcome, evidence=evidence)
    except FleetError as error:
        outcome = msgspec.structs.replace(outcome, error=error.detail)
    except KeyboardInterrupt:
        outcome = msgspec.structs.replace(outcome, is_interrupted=True)
    finally:
        trouble = await _take_away(fleet, trial, presses=presses, tell=tell)
    outcome = msgspec.structs.replace(outcome, alone=_total(alone), full=_total(full))
    return outcome if trouble is None else msgspec.structs.replace(outcome, error=trouble)


async def _take_away(fleet: Fleet, trial: Trial, *, presses: Presses, tell: Tell) -> ErrorDetail | None:
    """Why something of it may be left, if so. Ctrl-C meanwhile lets go."""
    tell(f"{trial.label}: taking {trial.deployment} away")
    try:
        await until_pressed(_remove(fleet, trial), presses)
    except FleetError as error:
        return error.detail
    except KeyboardInterrupt:
        return ErrorDetail(
            code="E301",
            message=f"let go: {trial.deployment} may still run",
            hint=f"odctl destroy {trial.deployment} takes it away",
        )
    return None


async def _load(fleet: Fleet, trial: Trial, alone: Measurement, full: Measurement) -> int:
    """Both loads; how many measurements of them its controller has written down."""
    status = (await read_deployments(fleet)).one(trial.deployment).reachable_status()
    async with fleet.own_client_of(status.gateway_host, status.gateway_socket) as client:
        for measurement in (alone, full):
            clients = measurement.settings.load.concurrency
            if measurement is full and clients == 1:
                break
            how = "one at a time" if clients == 1 else f"{clients} at a time"
            server = await find_server(
                client,
                label=f"{trial.label}, {how}",
                api="openai",
                model=trial.deployment,
                timeout_s=ANSWER_TIMEOUT_S,
            )
            await measurement.run(server)
            # A rest after each: to the controller both would be one stretch of requests, alone and together mixed.
            await _wait_for_evidence(fleet, trial)
    return await _count_evidence(fleet, trial)


async def _wait_for_evidence(fleet: Fleet, trial: Trial) -> None:
    """Until the controller has written down the stretch of requests that has just ended, or time is up."""
    deadline = time.monotonic() + EVIDENCE_TIMEOUT_S
    before = await _count_evidence(fleet, trial)
    while time.monotonic() < deadline:
        if await _count_evidence(fleet, trial) > before:
            return
        await asyncio.sleep(POLL_S)


async def _count_evidence(fleet: Fleet, trial: Trial) -> int:
    """Stretches of requests that the plan's controller has journalled."""
    history = await fleet.get(trial.preview.plan.controllers[0], "/v1/history", GenerationHistory)
    return sum(
        figures.source == "window"
        for served in history.generations
        if (served.deployment, served.plan_hash) == (trial.deployment, trial.preview.plan_hash)
        for figures in served.measured
    )


async def _remove(fleet: Fleet, trial: Trial) -> None:
    """Until no host knows of it, also when its apply went on by itself. Another plan of its name is left alone.

    Raises E301 when a host still has it.
    """
    name, deadline = trial.deployment, time.monotonic() + REMOVAL_TIMEOUT_S

    async def hear(_event: ApplyEvent) -> None:
        """The verb says itself how far it is."""

    while True:
        found = await read_deployments(fleet)
        sight = found.get(name)
        if sight is not None and sight.record.plan_hash != trial.preview.plan_hash:
            return
        if sight is not None:
            await destroy(fleet, found, name, on_event=hear)
            return
        if not any(record.name == name for record in found.pending):
            return
        if time.monotonic() > deadline:
            raise FleetError(
                "E301",
                f"an apply of {name} has not ended within {REMOVAL_TIMEOUT_S:.0f} s",
                hint=f"odctl destroy {name} when it has",
            )
        await asyncio.sleep(POLL_S)


def _apart(plan: Plan, serving: Sequence[Plan]) -> Plan:
    """The plan as it can be applied beside what serves: itself where nothing of it is taken."""
    is_name_taken = any(other.name == plan.name for other in serving)
    addresses = {other.serving.listen for other in serving if other.gateway_host == plan.gateway_host}
    if not is_name_taken and plan.serving.listen not in addresses:
        return plan
    taken = {address.rpartition(":")[2] for address in addresses}
    first, last = OWN_PORTS
    ports = [port for port in range(first, last + 1) if str(port) not in taken]
    listen = f"127.0.0.1:{random.choice(ports)}"
    name = f"{plan.name}{MEASURE_MARK}{secrets.token_hex(2)}" if is_name_taken else plan.name
    return msgspec.structs.replace(plan, name=name, serving=msgspec.structs.replace(plan.serving, listen=listen))


def _left_over(names: Sequence[str]) -> str:
    """A way out where what serves is what an operator's process left that was killed while it measured."""
    left = [name for name in names if MEASURE_MARK in name]
    return f"; odctl destroy {left[0]} takes away what a killed measurement has left" if left else ""


def _serving_plans(deployments: FleetDeployments) -> list[Plan]:
    """Raises E210 for a deployment whose controller is silent: what it holds where is not known then."""
    return [
        plan_from_toml(sight.reachable_status().plan_toml, file=f"plan of {sight.record.name}")
        for sight in deployments.deployments
    ]


def _settings(load: Load) -> Settings:
    return Settings(load=load, objectives=Objectives(), warm_up=max(WARM_UP, load.concurrency))


def _total(measurement: Measurement) -> Figures | None:
    totals = measurement.totals()
    return totals[0][1] if totals else None


def _spread(found: Distribution | None) -> Spread | None:
    return None if found is None else Spread(p50=found.p50, p95=found.p95)


def _rate(figures: Figures, clients: int) -> Spread | None:
    """Tokens per second of so many clients that each ask again when answered, by Little's law: at the median time
    of a request, and at its 95th percentile. Begin and end of a load, with fewer of them, weigh little in it.
    """
    if figures.request_s is None:
        return None
    tokens = clients * figures.mean_output_tokens
    return Spread(p50=tokens / figures.request_s.p50, p95=tokens / figures.request_s.p95)
