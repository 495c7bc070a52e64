"""A whole measurement: warm up, then the load, on one server or on two in alternation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from odctl.bench.drive import Drive
from odctl.bench.load import Load
from odctl.bench.measure import Figures, Objectives, figures
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
        load = self.settings.load
        return PromptMaker(cost, shared_prefix=load.shared_prefix, seed=load.seed, part=part)

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

    def report(self) -> dict[str, Any]:
        """For `--json`: settings, figures of each server and of every round, and ratios where there are two."""
        return {
            "settings": msgspec.to_builtins(self.settings),
            "servers": [{"label": label, "figures": msgspec.to_builtins(each)} for label, each in self.totals()],
            "rounds": msgspec.to_builtins(self.rounds()),
            "ratios": msgspec.to_builtins(self.ratios()),
        }
