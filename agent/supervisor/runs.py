"""What deployments did, as evidence for the next plan: `RunMeasured` in their controller's journal."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from agent.facts.model import ModelSpec
from agent.facts.run import MeasuredRun
from agent.journal import Journal
from agent.planner.plan import Plan
from agent.supervisor.deployment import Controlled
from agent.supervisor.stretch import Stretch
from agent.wire.gateway import CheckReport

KIND = "RunMeasured"
LEAST_REQUESTS = 32
"""Finished requests before their means say something."""
MOST_REQUESTS = 512
"""Where requests are still there at the end, so many: those that are cut in two weigh little then."""
MAX_TOLD_RUNS = 256


class RunBook:
    """Writes runs of the deployments that this agent decides for, and reads them back."""

    def __init__(self, journal: Journal, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock

    def now_s(self) -> float:
        return self._clock()

    def open(self, plan: Plan, controlled: Controlled) -> RunSeries:
        """The runs of one layout, as its controller measures them."""
        return RunSeries(plan, controlled, self)

    def record(self, run: MeasuredRun, *, generation: int) -> None:
        self._journal.append(
            KIND, deployment=run.deployment, generation=generation, plan_hash=run.plan_hash, body=run
        )

    def record_check(
        self, plan: Plan, checked: CheckReport, *, plan_hash: str, plan_toml: str, spec: ModelSpec, generation: int
    ) -> None:
        """The canary of an apply: one stream, warm, alone. Guessed tokens are no step of the cost model's."""
        if plan.serving.speculation != "none" or checked.prompt_tokens < 1:
            return
        run = MeasuredRun(
            deployment=plan.name,
            plan_hash=plan_hash,
            plan_toml=plan_toml,
            spec=without_tensors(spec),
            source="check",
            prompt_tokens=checked.prompt_tokens,
            streams=1,
            ttft_s=checked.ttft_s,
            time_per_token_s=checked.time_per_token_s,
            measured_at_s=self.now_s(),
        )
        self.record(run, generation=generation)

    def all(self) -> tuple[MeasuredRun, ...]:
        """The newest `MAX_TOLD_RUNS`, oldest first; what an earlier release wrote otherwise is left out."""
        runs = []
        for event in self._journal.read_kinds((KIND,), MAX_TOLD_RUNS):
            try:
                runs.append(msgspec.json.decode(event.body, type=MeasuredRun))
            except msgspec.DecodeError:
                continue
        return tuple(runs)


class RunSeries:
    """The requests of one layout: stretches too short to say something are joined until they do."""

    def __init__(self, plan: Plan, controlled: Controlled, book: RunBook) -> None:
        self._plan = plan
        self._controlled = controlled
        self._book = book
        self._joined: Stretch | None = None

    def take(self, stretch: Stretch) -> None:
        """Write a run once there is enough of it. Guessed tokens are no step of the cost model's."""
        if self._plan.serving.speculation != "none":
            return
        so_far = (self._joined.joined(stretch) if self._joined is not None else None) or stretch
        if so_far.finished < (LEAST_REQUESTS if so_far.is_at_rest else MOST_REQUESTS):
            self._joined = so_far
            return
        self._joined = None
        run = self._run(so_far)
        if run is not None:
            self._book.record(run, generation=so_far.generation)

    def forget(self) -> None:
        """What came so far was not of the whole layout."""
        self._joined = None

    def _run(self, stretch: Stretch) -> MeasuredRun | None:
        """None where nothing was decoded. First tokens are left out beside others, or of prompts known already."""
        prompt_tokens = round(stretch.prompt_tokens)
        if prompt_tokens < 1 or stretch.ttft_s is None or stretch.time_per_token_s is None:
            return None
        # Those beyond the slots waited, and decoded with nobody.
        streams = max(1, min(stretch.after.slots, round(stretch.streams)))
        is_plain = streams == 1 and not stretch.has_known_prompts
        return MeasuredRun(
            deployment=self._plan.name,
            plan_hash=self._controlled.plan_hash,
            plan_toml=self._controlled.plan_toml,
            spec=without_tensors(self._controlled.spec),
            source="requests",
            prompt_tokens=prompt_tokens,
            answer_tokens=round(stretch.answer_tokens),
            streams=streams,
            ttft_s=stretch.ttft_s if is_plain else 0.0,
            time_per_token_s=stretch.time_per_token_s,
            tokens_per_s=stretch.tokens_per_s or 0.0,
            tokens_by_streams=stretch.tokens_by_streams,
            measured_at_s=self._book.now_s(),
        )


def without_tensors(spec: ModelSpec) -> ModelSpec:
    """Sizes alone: the table of tensors is a thousand times their size."""
    return msgspec.structs.replace(spec, tensors=())
