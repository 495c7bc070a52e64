"""Our side as a user gets it: hosts of a lab, a plan, an apply, the gateway's HTTP API. A rank has one thread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.planner.file import plan_from_toml
from agent.planner.plan import Plan
from tests.integration.cluster import Cluster, free_listen, open_cluster

NUM_HOSTS = 2
APPLY_S = 300.0


class NotAvailable(Exception):
    """What a row needs cannot be deployed; the row says why and the others go on."""


@dataclass(frozen=True, kw_only=True)
class Deployed:
    listen: str
    model: str
    plan: Plan

    @property
    def layers_of_stages(self) -> tuple[int, ...]:
        """Of the one replica."""
        return tuple(end - begin for begin, end in (stage.layers for stage in self.plan.replicas[0].stages))

    def drafts(self, cluster: Cluster) -> tuple[int, int]:
        """Guesses that were right, and all that were verified."""
        backend = cluster.status(self.plan.controllers[0], self.plan.name).backend
        assert backend is not None, "a deployment that answers has a backend"
        return backend.drafts_accepted, backend.drafts_proposed


@contextmanager
def open_lab(models: Path) -> Iterator[Cluster]:
    """Hosts with one thread each, that have the models at hand."""
    with open_cluster(num_hosts=NUM_HOSTS, model_dirs=(models,)) as cluster:
        inventory = cluster.lab.inventory_path
        inventory.write_text(re.sub(r"(?m)^threads = \d+$", "threads = 1", inventory.read_text()))
        yield cluster


@contextmanager
def deployed(cluster: Cluster, model: Path, folder: Path, *options: str, name: str = "bench") -> Iterator[Deployed]:
    """Raises NotAvailable with the verb's own words when it cannot be planned or applied."""
    plan_file, listen = folder / f"{name}.toml", free_listen()
    common = ("--name", name, "--listen", listen, "--controller", "h1", "-o", str(plan_file))
    planned = cluster.odctl("plan", str(model), *common, *options)
    if planned.exit_code != 0:
        raise NotAvailable(f"odctl plan {' '.join(options)}: {planned.stderr.strip()}")
    plan = plan_from_toml(plan_file.read_text(), file=str(plan_file))
    try:
        applied = cluster.odctl("apply", str(plan_file), "--yes", timeout_s=APPLY_S)
        if applied.exit_code != 0:
            raise NotAvailable(f"odctl apply: {applied.stderr.strip().splitlines()[-1]}")
        yield Deployed(listen=listen, model=name, plan=plan)
    finally:
        cluster.odctl("destroy", name, "--yes")
