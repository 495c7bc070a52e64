"""Records what the journals of a real lab say of three faults, as the fixtures beside this file.

`python -m tests.odctl.timeline.record` writes them anew. Bodies of kinds that the timeline does not read are left
out, and so are plans: what is kept is what the tests are about.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.wire.agent import Event
from odctl.timeline import KINDS
from odctl.timeline.kinds import slim
from tests.integration.clients import streams
from tests.integration.cluster import Cluster, free_listen, open_cluster, until
from tests.integration.models import write_endless_model
from tests.odctl.timeline.events import RECORDED

NAME = "chat"
CONTROLLER = "h1"
STAGES = 3


def main() -> None:
    listen = free_listen()
    with tempfile.TemporaryDirectory() as directory, open_cluster(num_hosts=STAGES) as cluster:
        root = Path(directory)
        plan = cluster.plan(
            write_endless_model(root / "endless"),
            root / "plan.toml",
            *("--name", NAME, "--listen", listen, "--controller", CONTROLLER),
            *("--strategy", "pipeline", "--stages", str(STAGES), "--context", "512"),
        )
        cluster.apply(plan)

        def kill_rank() -> None:
            with streams(listen, NAME, count=2):
                pid = cluster.rank(NAME, f"r0s{STAGES - 1}t0").pid
                os.kill(pid, signal.SIGKILL)
                _wait_for_fault(cluster, "rank_lost")

        def kill_agent() -> None:
            cluster.kill_agent("h2")
            _wait_for_fault(cluster, "agent_lost")

        def lose_host() -> None:
            cluster.kill_host("h3")
            cluster.wait_state(CONTROLLER, NAME, "degraded", timeout_s=90)
            cluster.bootstrap("h3")

        record(cluster, "killed_rank", kill_rank)
        record(cluster, "killed_agent", kill_agent)
        record(cluster, "lost_host", lose_host)
        cluster.must("destroy", NAME, "--yes")


def record(cluster: Cluster, name: str, strike: Callable[[], None]) -> None:
    """All events from before the blow until everything is well again."""
    before = {host: events[-1].event_id for host in cluster.hosts if (events := cluster.events(host))}
    strike()
    cluster.wait_serving(CONTROLLER, NAME, timeout_s=120)
    until(lambda: all(fault.healed_at_s for fault in cluster.faults(CONTROLLER)), timeout_s=60, what=cluster.diary)
    kept = {host: [_kept(event) for event in cluster.events(host, after=before[host])] for host in cluster.hosts}
    RECORDED.mkdir(exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(kept), indent=1)
    (RECORDED / f"{name}.json").write_bytes(text + b"\n")


def _kept(event: Event) -> Event:
    return slim(event) if event.kind in KINDS else msgspec.structs.replace(event, body="{}")


def _wait_for_fault(cluster: Cluster, kind: str) -> None:
    until(lambda: any(fault.kind == kind for fault in cluster.faults(CONTROLLER)), timeout_s=30, what=cluster.diary)


if __name__ == "__main__":
    main()
