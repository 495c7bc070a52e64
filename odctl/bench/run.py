"""A whole measurement: warm up, then the load, on one server or on two in alternation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agent.simulation.trace import TraceRequest
from odctl.bench.drive import Drive
from odctl.bench.load import Lengths, Load, Shot, shots
from odctl.bench.measure import Figures, Objectives, Outcome, figures
from odctl.bench.prompts import PromptMaker, WordCost
from odctl.bench.server import Server
from odctl.bench.versus import Ratio, ratios

MAX_ROUNDS = 1000
MAX_WARM_UP = 10_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    load: Load
    """Of each round."""
    objectives: Objectives
    warm_up: int
    """Requests before the first round that nobody counts."""
    rounds: int = 1


class Measurement:
    """Grows while it runs; `report` may be asked at any time, also after it was broken off."""

    def __init__(self, settings: Settings, *, tell: Callable[[str], None]) -> None:
        self.settings = settings
        self._tell = tell
        self._drives: list[list[Drive]] = []
        """A list for each round, with a drive for each server."""

    async def run(self, *servers: Server) -> None:
        """Every round goes to one server, or to two one after the other. Raises E808 when one does not answer."""
        settings = self.settings
        costs = [await server.learn_word_cost() for server in servers]
        for server, cost in zip(servers, costs, strict=True):
            if settings.warm_up:
                self._tell(f"{server.label}: warming up")
                count = settings.warm_up
                concurrency = min(count, settings.load.concurrency)
                load = msgspec.structs.replace(
                    settings.load, arrivals="closed", num_requests=count, duration_s=None, concurrency=concurrency
                )
                if settings.load.arrivals == "trace":
                    load = _like_first_request(load)
                await Drive(server, load, self._prompts(cost, "warm-up")).run()
        for round_ in range(settings.rounds):
            self._drives.append([])
            for server, cost in zip(servers, costs, strict=True):
                self._tell(f"{server.label}: round {round_ + 1} of {settings.rounds}")
                drive = Drive(server, settings.load, self._prompts(cost, f"round {round_}"))
                self._drives[-1].append(drive)
                await drive.run()

    def _prompts(self, cost: WordCost, part: str) -> PromptMaker:
        """Every part has prompts of its own, or a server would find them in its cache; the prefix is one."""
        return PromptMaker(cost, seed=self.settings.load.seed, part=part)

    def rounds(self) -> list[list[Figures]]:
        """A list for each round, with the figures of each server."""
        return [[self._figures([drive]) for drive in drives] for drives in self._drives]

    def totals(self) -> list[tuple[str, Figures]]:
        """Each server's label, and its figures over all rounds."""
        if not self._drives:
            return []
        of_servers = [[each[index] for each in self._drives if index < len(each)] for index in range(2)]
        return [(drives[0].server.label, self._figures(drives)) for drives in of_servers if drives]

    def ratios(self) -> tuple[Ratio, ...]:
        return ratios([(each[0], each[1]) for each in self.rounds() if len(each) == 2])

    def _figures(self, drives: Sequence[Drive]) -> Figures:
        return figures(
            [outcome for drive in drives for outcome in drive.outcomes],
            elapsed_s=sum(drive.elapsed_s for drive in drives),
            objectives=self.settings.objectives,
        )

    def recorded(self) -> tuple[TraceRequest, ...]:
        """The first server's answered requests as a trace, with what was measured; rounds follow each other."""
        found: list[TraceRequest] = []
        begin_s = 0.0
        for drives in self._drives:
            answered = [outcome for outcome in drives[0].outcomes if not outcome.error]
            num_shots = max((outcome.index + 1 for outcome in answered), default=0)
            wanted = list(itertools.islice(shots(self.settings.load), num_shots))
            found += [_recorded(outcome, wanted[outcome.index], begin_s) for outcome in answered]
            begin_s += drives[0].elapsed_s
        return tuple(sorted(found, key=lambda each: each.arrival_s))

    def report(self) -> dict[str, Any]:
        """For `--json`: settings, figures of each server and of every round, and ratios where there are two."""
        settings = msgspec.to_builtins(self.settings)
        # A trace is a file of its own; how long it is says enough here.
        settings["load"]["trace"] = len(self.settings.load.trace)
        return {
            "settings": settings,
            "servers": [{"label": label, "figures": msgspec.to_builtins(each)} for label, each in self.totals()],
            "rounds": msgspec.to_builtins(self.rounds()),
            "ratios": msgspec.to_builtins(self.ratios()),
        }


def _like_first_request(load: Load) -> Load:
    """Warm-up for a trace: its first request's lengths."""
    first = load.trace[0]
    return msgspec.structs.replace(
        load,
        prompt=Lengths(low=first.prompt_tokens, high=first.prompt_tokens),
        output=Lengths(low=first.output_tokens, high=first.output_tokens),
    )


def _recorded(outcome: Outcome, shot: Shot, begin_s: float) -> TraceRequest:
    return TraceRequest(
        arrival_s=begin_s + outcome.sent_s,
        prompt_tokens=outcome.prompt_tokens or shot.prompt_tokens,
        output_tokens=outcome.output_tokens,
        prefix_group=shot.prefix_group,
        prefix_tokens=min(shot.prefix_tokens, outcome.prompt_tokens or shot.prompt_tokens),
        client=shot.client,
        ttft_s=outcome.ttft_s,
        tpot_s=outcome.tpot_s or None,
    )
