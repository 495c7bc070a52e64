"""What deployments did, as evidence for the next plan: `RunMeasured` in their controller's journal."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from agent.facts.model import ModelSpec
from agent.facts.run import MeasuredRun
from agent.journal import Journal
from agent.planner.plan import Plan
from agent.wire.gateway import BackendStatus, CheckReport

KIND = "RunMeasured"
LEAST_REQUESTS = 32
"""Finished requests before their means say something."""
MOST_REQUESTS = 512
"""So many are told as one run under a load that never rests; otherwise what ended when there was a rest."""
MAX_TOLD_RUNS = 256


class RunBook:
    """Writes runs of the deployments that this agent decides for, and reads them back."""

    def __init__(self, journal: Journal, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock

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
            prompt_tokens=checked.prompt_tokens,
            streams=1,
            ttft_s=checked.ttft_s,
            time_per_token_s=checked.time_per_token_s,
            measured_at_s=self._clock(),
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


class WindowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend did in one window; a time of 0 would mislead, as `LoadWindow.take` says."""

    prompt_tokens: int
    answer_tokens: int
    streams: int
    ttft_s: float
    time_per_token_s: float
    tokens_per_s: float


class LoadWindow:
    """Requests of one backend since a moment: how many decoded together, and their means."""

    def __init__(self, *, generation: int, opened: BackendStatus | None = None) -> None:
        self.generation = generation
        self._opened = opened
        self._running: list[int] = []

    def take(self, backend: BackendStatus) -> WindowFigures | None:
        """The window's figures when it is full; the next one then begins.

        A time is 0 where it would mislead: TTFT beside other streams or with prompts that were known already.
        """
        if self._opened is None or backend.finished < self._opened.finished:
            self._opened, self._running = backend, []
        if backend.running:
            self._running.append(backend.running)
        opened = self._opened
        ended = backend.finished - opened.finished
        rests = backend.running == 0 and backend.queued == 0
        if ended < (LEAST_REQUESTS if rests else MOST_REQUESTS) or not self._running:
            return None
        streams = max(1, round(sum(self._running) / len(self._running)))
        prompt_tokens = round((backend.prompt_tokens - opened.prompt_tokens) / ended)
        generated, busy_s = backend.generated_tokens - opened.generated_tokens, backend.busy_s - opened.busy_s
        decoded = backend.decoded_tokens - opened.decoded_tokens
        answered = backend.num_first_tokens - opened.num_first_tokens
        is_plain = streams == 1 and backend.prefix_hit_tokens == opened.prefix_hit_tokens
        self._opened, self._running = backend, []
        if prompt_tokens < 1 or decoded < 1 or answered < 1:
            return None
        return WindowFigures(
            prompt_tokens=prompt_tokens,
            answer_tokens=round(generated / ended),
            streams=streams,
            ttft_s=(backend.ttft_s_sum - opened.ttft_s_sum) / answered if is_plain else 0.0,
            time_per_token_s=(backend.decode_s_sum - opened.decode_s_sum) / decoded,
            tokens_per_s=generated / busy_s if busy_s > 0 else 0.0,
        )


def without_tensors(spec: ModelSpec) -> ModelSpec:
    """Sizes alone: the table of tensors is a thousand times their size."""
    return msgspec.structs.replace(spec, tensors=())
