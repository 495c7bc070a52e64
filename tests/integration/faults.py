"""One fault under load, measured: how soon it is a fault event, what each client saw, when all is well again."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import msgspec

from agent.facts.fault import Fault, FaultKind
from tests.integration.clients import Stream, ask, streams
from tests.integration.cluster import AgentSilent, Cluster, until

NUM_STREAMS = 8
DETECT_LIMIT_S = 6.0
"""From the blow to the fault event, on a machine that does much else; what is promised, the benchmark measures."""
LOOK_LIMIT_S = 20.0
HEAL_LIMIT_S = 90.0


class Struck(msgspec.Struct):
    """What a blow did."""

    fault: Fault
    detected_s: float
    streams: list[Stream]
    answer_s: float
    """From the blow until a new request had its whole answer."""
    serving_s: float
    """Until the deployment called itself serving again; negative when it is not meant to by itself."""

    @property
    def went_on(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.went_on]

    @property
    def told(self) -> list[Stream]:
        """Streams that were ended by an error in the protocol's own form."""
        return [stream for stream in self.streams if stream.error and not stream.broke]

    @property
    def silent(self) -> list[str]:
        """How connections broke that should not have: nobody may learn of a fault in this way."""
        return [stream.broke for stream in self.streams if stream.broke]


def strike(
    cluster: Cluster,
    blow: Callable[[], object],
    *,
    kind: FaultKind,
    host: str,
    deployment: str,
    listen: str,
    controller: str,
    observers: tuple[str, ...] = (),
    heals: bool = True,
    bring_back: Callable[[], object] | None = None,
) -> Struck:
    """8 streams are under way; the blow falls; everything is watched until new requests succeed, and until the
    deployment serves again when it `heals` by itself. What cannot is brought back once the fault was seen.
    """
    seen_by = observers or (controller,)
    known = {fault.fault_id for fault in _faults(cluster, seen_by)}
    with streams(listen, deployment, count=NUM_STREAMS) as running:
        struck_at = time.time()
        blow()

        def fresh_fault() -> Fault | None:
            return next(
                (
                    fault
                    for fault in _faults(cluster, seen_by)
                    if fault.fault_id not in known and fault.kind == kind and fault.host == host
                ),
                None,
            )

        fault = until(fresh_fault, timeout_s=LOOK_LIMIT_S, what=lambda: _faults(cluster, seen_by))
        if bring_back is not None:
            bring_back()
        until(lambda: _answers(listen, deployment), timeout_s=HEAL_LIMIT_S, what=cluster.diary)
        answer_s = time.time() - struck_at
        serving_s = -1.0
        if heals:
            cluster.wait_serving(controller, deployment, timeout_s=HEAL_LIMIT_S)
            serving_s = time.time() - struck_at
    return Struck(
        fault=fault,
        detected_s=fault.observed_at_s - struck_at,
        streams=running,
        answer_s=answer_s,
        serving_s=serving_s,
    )


def _faults(cluster: Cluster, hosts: tuple[str, ...]) -> list[Fault]:
    """Of those that answer: the struck one may be among them."""
    found: list[Fault] = []
    for host in hosts:
        try:
            found += cluster.faults(host)
        except AgentSilent:
            continue
    return found


def _answers(listen: str, deployment: str) -> bool:
    try:
        return bool(ask(listen, deployment))
    except httpx.HTTPError:
        return False
