"""What served when, by all controllers' journals, with what a rollback needs: the plan before this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.planner.file import plan_from_toml
from agent.planner.measured import HeldFigure, hold_figure
from agent.planner.plan import Plan
from agent.wire.agent import DeploymentRecord
from agent.wire.history import GenerationHistory, ServedGeneration
from odctl.fleet import Fleet

EntryState = Literal["current", "replaced", "destroyed"]
MANY_STREAMS = 1.5
"""From here on figures are of requests beside each other, which a plan's prediction for one alone is not."""
OF_ANY_LOAD = "a mean, whatever the lengths were"
"""Why the figures of a history are not judged by their intervals."""
SAME_PROMPT_WITHIN = 0.25
"""Mean prompts that differ by no more from the predicted one's length are held against it: a first token takes as
long as its prompt. A load's first requests, which learn how words are counted, are in the mean."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of a deployment, with its plan where a journal still has it."""

    served: ServedGeneration
    state: EntryState
    plan: Plan | None
    plan_toml: str
    ended_by: str = ""
    """Who destroyed it."""


class FleetHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Entries by deployment and time, oldest first; hosts that did not tell theirs."""

    entries: tuple[Entry, ...]
    unreachable: dict[str, FleetError]

    def of(self, deployment: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.served.deployment == deployment)

    @property
    def deployments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.served.deployment for entry in self.entries))


async def read_history(fleet: Fleet) -> FleetHistory:
    """Every host's journal, and which generation the hosts hold now."""
    answers = await fleet.get_all("/v1/history", GenerationHistory)
    records = await fleet.get_all("/v1/deployments", tuple[DeploymentRecord, ...])
    missing = {host: answer for host, answer in answers.items() if isinstance(answer, FleetError)}
    told = [answer for answer in answers.values() if not isinstance(answer, FleetError)]
    known = [record for answer in records.values() if not isinstance(answer, FleetError) for record in answer]
    return FleetHistory(entries=join_histories(told, known), unreachable=missing)


def join_histories(told: Sequence[GenerationHistory], records: Sequence[DeploymentRecord]) -> tuple[Entry, ...]:
    """One history of many journals. `records` say what is there now. Pure."""
    plans = {plan_hash: text for each in told for plan_hash, text in each.plans.items()}
    ends = sorted((end for each in told for end in each.ends), key=lambda end: end.at_s)
    now: dict[str, DeploymentRecord] = {}
    for record in records:
        if record.generation and (record.name not in now or record.generation > now[record.name].generation):
            now[record.name] = record
    served = sorted(
        (generation for each in told for generation in each.generations),
        key=lambda generation: (generation.deployment, generation.served_at_s, generation.generation),
    )
    entries: list[Entry] = []
    for generation in served:
        end = next(
            (end for end in ends if end.deployment == generation.deployment and end.at_s > generation.served_at_s),
            None,
        )
        current = now.get(generation.deployment)
        is_current = (
            end is None
            and current is not None
            and (current.generation, current.plan_hash) == (generation.generation, generation.plan_hash)
        )
        text = plans.get(generation.plan_hash, "")
        entries.append(
            Entry(
                served=generation,
                state="current" if is_current else "destroyed" if end is not None else "replaced",
                plan=plan_from_toml(text, file=f"plan {generation.plan_hash[:12]}") if text else None,
                plan_toml=text,
                ended_by=end.by if end is not None else "",
            )
        )
    return tuple(entries)


def held_figures(entry: Entry) -> dict[str, HeldFigure]:
    """`ttft`, `time_per_token` and `throughput`: predicted beside what was measured last under such a load.

    First tokens and times per token are predicted for one request alone, throughput for a full batch: figures of
    other loads are left out, and stand in the entry itself.
    """
    assert entry.plan is not None, "without its plan nothing is known to be predicted"
    predicted, checked = entry.plan.predicted, entry.served.checked
    alone = [each for each in entry.served.measured if each.streams < MANY_STREAMS and each.source != "check"]
    full = entry.plan.serving.batch * len(entry.plan.replicas)
    many = [each for each in entry.served.measured if each.streams > (full + 1) / 2 or full == 1]
    ttft_s = _last(
        [
            each.ttft_s
            for each in alone
            if abs(each.prompt_tokens / predicted.prompt_tokens - 1) <= SAME_PROMPT_WITHIN
        ]
    )
    time_per_token_s = _last([each.time_per_token_s for each in alone])
    if time_per_token_s is None and checked is not None:
        # The canary's prompt is of another length than the predicted one: no first token to hold against it.
        time_per_token_s = checked.time_per_token_s
    tokens_per_s = _last([each.tokens_per_s for each in many])
    return {
        "ttft": hold_figure("ttft", predicted=predicted.ttft, measured=ttft_s, remark=OF_ANY_LOAD),
        "time_per_token": hold_figure(
            "latency", predicted=predicted.time_per_token, measured=time_per_token_s, remark=OF_ANY_LOAD
        ),
        "throughput": hold_figure(
            "throughput", predicted=predicted.throughput, measured=tokens_per_s, remark=OF_ANY_LOAD
        ),
    }


def last_apply_s(entries: Sequence[Entry], hashes: Sequence[str]) -> tuple[float | None, ...]:
    """How long the newest apply of each of these plans took; None where none is known."""
    took = {entry.served.plan_hash: entry.served.apply_s for entry in entries if entry.served.apply_s is not None}
    return tuple(took.get(plan_hash) for plan_hash in hashes)


def plan_before(entries: Sequence[Entry], *, deployment: str) -> Entry:
    """The newest generation of another plan than the current one's; of one that is destroyed, its last.

    Entries are of one deployment, oldest first. Raises E110 when there is none, E105 when its plan is lost.
    """
    current = next((entry for entry in reversed(entries) if entry.state == "current"), None)
    for entry in reversed(entries):
        is_other = current is None or entry.served.plan_hash != current.served.plan_hash
        if is_other and entry.served.cause != "measure":
            return _with_plan(entry)
    raise FleetError(
        "E110",
        f"no plan of {deployment} is known from before the current one",
        hint=f"odctl history {deployment} shows what is known",
    )


def plan_of_generation(entries: Sequence[Entry], generation: int, *, deployment: str) -> Entry:
    """The newest generation of that number. Raises E110 naming those that there are."""
    for entry in reversed(entries):
        if entry.served.generation == generation:
            return _with_plan(entry)
    known = ", ".join(str(number) for number in sorted({entry.served.generation for entry in entries}))
    raise FleetError(
        "E110",
        f"{deployment} has no generation {generation} in its history",
        hint=f"known: {known}" if known else f"nothing is known of {deployment}",
    )


def _with_plan(entry: Entry) -> Entry:
    if entry.plan is None:
        served = entry.served
        raise FleetError(
            "E105",
            f"the plan {served.plan_hash[:12]} of generation {served.generation} of {served.deployment} is in no "
            "journal any more",
            hint="take another one with --to, or apply its file",
        )
    return entry


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
