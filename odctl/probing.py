"""The operator's part of a probe: what is known, what has to be measured, who measures when.

Devices of different machines are measured at the same time, hosts that share a machine (a lab's) one after the
other. Links are measured by the agents among themselves, in rounds in which every machine takes part once; one
host's store is their rendezvous. Agents keep what they found; this process keeps nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise, permutations

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts, HostFacts
from agent.facts.measured import hardware_hash, is_group_current, is_link_current, with_probes
from agent.facts.probe import GroupProbe, HostProbe, LinkProbe, ProbedCarrier, ProbeRecord
from agent.planner.carriers import carrier_of
from agent.planner.words import age_words
from agent.wire.agent import HostAddress
from agent.wire.probe import (
    LinkReport,
    LinkStep,
    ProbeDevices,
    ProbeLinks,
    ProbeModel,
    ProbeSizes,
    serving_refusal,
)
from odctl.fleet import Fleet

MAX_HOSTS_ALL_PAIRS = 16
MAX_PAIRS = 120
"""As many as 16 hosts have."""
MAX_GROUP = 4
MAX_LOCAL_DEVICES = 8
DOMAIN_LABELS = ("domain", "rack", "site", "zone", "region")
"""The first of these labels that a host has says where it stands."""
ANSWER_LIMIT_S = 250.0
"""Of an agent that measures; its processes end themselves long before."""

OnProgress = Callable[[str], None]


class ProbeOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured that is of the hosts' present hardware, and what could not be measured."""

    facts: ClusterFacts
    records: tuple[ProbeRecord, ...]
    fresh: frozenset[str]
    """Hosts whose devices were measured just now."""
    num_links_measured: int
    """Directions measured just now."""
    troubles: tuple[FleetError, ...]

    @property
    def probes(self) -> dict[str, HostProbe]:
        return {record.host: record.probe for record in self.records if record.probe is not None}

    @property
    def links(self) -> tuple[LinkProbe, ...]:
        hashes = hardware_of(self.facts)
        found = (link for record in self.records for link in record.links if is_link_current(link, hashes))
        return tuple(sorted(found, key=lambda link: (link.source, link.target, link.carrier)))

    @property
    def groups(self) -> tuple[GroupProbe, ...]:
        hashes = hardware_of(self.facts)
        found = (group for record in self.records for group in record.groups if is_group_current(group, hashes))
        return tuple(sorted(found, key=lambda group: (len(group.members), group.members, group.carrier)))


async def read_records(fleet: Fleet, hosts: Iterable[str]) -> dict[str, ProbeRecord]:
    """What agents have measured before. One of a release that measures nothing has nothing to say."""
    answers = await fleet.get_all("/v1/probes", ProbeRecord, hosts=hosts)
    return {host: answer for host, answer in answers.items() if not isinstance(answer, FleetError)}


async def add_probes(fleet: Fleet, facts: ClusterFacts) -> ClusterFacts:
    """The facts with everything that was measured of them."""
    records = await read_records(fleet, [host.name for host in facts.hosts])
    return with_probes(facts, records.values())


def measured_line(facts: ClusterFacts, hosts: Sequence[str], *, now_s: float) -> str:
    """How old the figures are that a plan of these hosts was made with, or how to get some."""
    chosen = [host for host in facts.hosts if host.name in hosts]
    probes = [device.probe for host in chosen for device in host.devices]
    parts = [_age_of([probe.measured_at_s if probe is not None else None for probe in probes], "devices", now_s)]
    if len(chosen) > 1:
        known = {frozenset((link.source, link.target)): link.measured_at_s for link in facts.links}
        times = [known.get(frozenset(pair)) for pair in combinations([host.name for host in chosen], 2)]
        parts.append(_age_of(times, "links", now_s))
    hint = "" if all("not measured" not in part for part in parts) else ": odctl probe"
    return f"{', '.join(parts)}{hint}"


def _age_of(times: Sequence[float | None], what: str, now_s: float) -> str:
    """`links measured 3 min ago`, by the oldest; `links not measured` when one is missing."""
    known = [at_s for at_s in times if at_s is not None]
    if len(known) < len(times):
        missing = f"{len(times) - len(known)} of {len(times)} " if known else ""
        return f"{missing}{what} not measured"
    return f"{what} measured {age_words(now_s - min(known, default=now_s))}"


async def probe_fleet(
    fleet: Fleet,
    facts: ClusterFacts,
    *,
    sizes: ProbeSizes,
    is_forced: bool,
    even_serving: bool,
    on_progress: OnProgress,
    model: ProbeModel | None = None,
) -> ProbeOutcome:
    """Measure what is not known yet, or everything; a `model` is rehearsed besides, and only it again by force.

    Raises the E501 of a host that serves; what goes wrong elsewhere is among the outcome's troubles.
    """
    names = [host.name for host in facts.hosts]
    records = await read_records(fleet, names)
    is_all_forced = is_forced and model is None
    for name in names:
        if name not in records:
            hint = f"odctl bootstrap {name}"
            raise FleetError("E302", "its agent knows no probes: it is of an older release", hint=hint, host=name)
    wanted = [
        host for host in facts.hosts
        if is_all_forced or records[host.name].probe is None or _is_rougher(records[host.name].probe, sizes)
    ]  # fmt: skip
    steps = link_steps(facts.hosts, is_network_trusted=fleet.is_network_trusted)
    if not is_all_forced:
        steps = _missing_steps(steps, records, hardware_of(facts))
    rehearsing = [
        host for host in facts.hosts
        if model is not None and (is_forced or not _has_rehearsed(records[host.name].probe, model))
    ]  # fmt: skip
    needed = {host.name for host in (*wanted, *rehearsing)}
    needed |= {_host(member) for step in steps for member in step.members}
    for name in sorted(needed):
        if records[name].serving and not even_serving:
            raise serving_refusal(name, records[name].serving)
    order = ProbeDevices(sizes=sizes, even_serving=even_serving)
    troubles = await _probe_devices(fleet, wanted, order, on_progress)
    lost = {trouble.host for trouble in troubles}
    if model is not None:
        there = [host for host in rehearsing if host.name not in lost]
        troubles += await _probe_devices(fleet, there, model, on_progress)
    steps = _without(steps, [step for step in steps if lost & {_host(member) for member in step.members}])
    measured = 0
    if steps:
        reports, more = await _probe_links(fleet, facts, steps, order, on_progress)
        measured = sum(len(report.links) for report in reports)
        troubles += more
    return ProbeOutcome(
        facts=facts,
        records=tuple((await read_records(fleet, names)).values()),
        fresh=frozenset(host.name for host in wanted) - lost,
        num_links_measured=measured,
        troubles=tuple(troubles),
    )


def hardware_of(facts: ClusterFacts) -> dict[str, str]:
    return {host.name: hardware_hash(host) for host in facts.hosts}


def _is_rougher(known: HostProbe | None, sizes: ProbeSizes) -> bool:
    """Quick figures do not stand in for those that were asked for."""
    return known is not None and known.is_quick and not sizes.is_quick


def _has_rehearsed(known: HostProbe | None, model: ProbeModel) -> bool:
    key = (model.model.widths, model.dtype, model.quantisation)
    return known is not None and all(device.rehearsals(*key) for device in known.devices)


# --- devices ------------------------------------------------------------------------------------------


async def _probe_devices(
    fleet: Fleet, hosts: Sequence[HostFacts], order: ProbeDevices | ProbeModel, on_progress: OnProgress
) -> list[FleetError]:
    """All machines at once, each of their hosts in turn. Raises E501; other troubles are returned."""
    machines: dict[str, list[HostFacts]] = {}
    for host in hosts:
        machines.setdefault(machine_of(host), []).append(host)
    troubles: list[FleetError] = []
    is_model = isinstance(order, ProbeModel)
    doing = f"rehearsing {order.model.name} on" if isinstance(order, ProbeModel) else "measuring"

    async def measure(of_one_machine: list[HostFacts]) -> None:
        for host in of_one_machine:
            on_progress(f"{host.name}: {doing} {', '.join(device.id for device in host.devices)}")
            route = "/v1/probe/model" if is_model else "/v1/probe"
            try:
                await fleet.post(host.name, route, order, HostProbe, timeout_s=ANSWER_LIMIT_S)
            except FleetError as error:
                troubles.append(error)
                if error.code == "E501":
                    return

    async with asyncio.TaskGroup() as group:
        for of_one_machine in machines.values():
            group.create_task(measure(of_one_machine))
    _raise_refusal(troubles)
    return troubles


def machine_of(host: HostFacts) -> str:
    """Hosts with one kernel share a machine, as a lab's do."""
    return host.boot_id or host.name


def _raise_refusal(troubles: Iterable[FleetError]) -> None:
    for trouble in sorted(troubles, key=lambda each: each.host):
        if trouble.code == "E501":
            raise trouble


# --- links --------------------------------------------------------------------------------------------


def link_steps(hosts: Sequence[HostFacts], *, is_network_trusted: bool) -> tuple[LinkStep, ...]:
    """What is worth measuring, in an order in which each machine is in one step at a time.

    Pairs of hosts by their first devices; devices of one host; and of small clusters the candidates for larger
    tensor-parallel groups: the first three and four hosts.
    """
    seats = {host.name: f"{host.name}/{_main_device(host)}" for host in hosts if host.devices}
    groups = [tuple(seats[name] for name in pair) for pair in host_pairs([h for h in hosts if h.devices])]
    for host in hosts:
        local = [f"{host.name}/{device.id}" for device in host.devices if device.kind == "cuda"][:MAX_LOCAL_DEVICES]
        groups += list(combinations(local[:2], 2)) + ([tuple(local)] if len(local) > 2 else [])
    names = sorted(seats)
    groups += [tuple(seats[name] for name in names[:size]) for size in range(3, min(MAX_GROUP, len(names)) + 1)]
    steps = []
    machines = {host.name: machine_of(host) for host in hosts}
    last: dict[str, str] = {}
    turns = [(members, carrier) for members in groups for carrier in _carriers(members, is_network_trusted)]
    for number, (members, carrier) in enumerate(turns):
        name = f"{number:04d}"
        used = {machines[_host(member)] for member in members}
        after = tuple(sorted({last[machine] for machine in used if machine in last}))
        steps.append(LinkStep(name=name, members=members, carrier=carrier, after=after))
        last |= dict.fromkeys(used, name)
    return tuple(steps)


def host_pairs(hosts: Sequence[HostFacts]) -> list[tuple[str, str]]:
    """All pairs of up to 16 hosts in rounds without a host twice; of more, a sample by where they stand.

    The sample has a chain of neighbours within each domain and one pair between any two of them, as far as
    `MAX_PAIRS` goes.
    """
    names = sorted(host.name for host in hosts)
    if len(names) <= MAX_HOSTS_ALL_PAIRS:
        return _rounds(names)
    domains: dict[str, list[str]] = {}
    for host in sorted(hosts, key=lambda each: each.name):
        domains.setdefault(domain_of(host), []).append(host.name)
    between = [(a[0], b[0]) for a, b in combinations(domains.values(), 2)]
    chains = [list(pairwise(members)) for members in domains.values()]
    within = [chain[index] for index in range(max(map(len, chains))) for chain in chains if index < len(chain)]
    half = MAX_PAIRS // 2
    room = MAX_PAIRS - min(len(between), half)
    return (between[: max(half, MAX_PAIRS - len(within))] + within[:room])[:MAX_PAIRS]


def domain_of(host: HostFacts) -> str:
    """`rack=r1`; empty for a host without such a label."""
    return next((f"{label}={host.labels[label]}" for label in DOMAIN_LABELS if label in host.labels), "")


def _rounds(names: list[str]) -> list[tuple[str, str]]:
    """All pairs by the circle method: rounds of disjoint pairs, behind each other."""
    ring: list[str | None] = [*names, *([None] if len(names) % 2 else [])]
    pairs = []
    for _ in range(len(ring) - 1):
        for a, b in zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True):
            if a is not None and b is not None:
                pairs.append((a, b) if a < b else (b, a))
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return pairs


def _main_device(host: HostFacts) -> str:
    """A GPU where there is one: that is what serves."""
    return next((device.id for device in host.devices if device.kind == "cuda"), host.devices[0].id)


def _carriers(members: tuple[str, ...], is_network_trusted: bool) -> list[ProbedCarrier]:
    """The one that would serve these ends; between hosts TLS beside it, which is there to fall back to."""
    ends = [(host, device) for host, _, device in (member.partition("/") for member in members)]
    carrier = carrier_of(ends, is_network_trusted=is_network_trusted)
    return [carrier, "tls"] if is_network_trusted and len({host for host, _ in ends}) > 1 else [carrier]


def _missing_steps(
    steps: tuple[LinkStep, ...], records: dict[str, ProbeRecord], hashes: dict[str, str]
) -> tuple[LinkStep, ...]:
    """Those without a figure of this hardware, in both directions where there are two."""
    groups = {
        (group.members, group.carrier)
        for record in records.values()
        for group in record.groups
        if is_group_current(group, hashes)
    }
    links = {
        (f"{link.source}/{link.source_device}", f"{link.target}/{link.target_device}", link.carrier)
        for record in records.values()
        for link in record.links
        if is_link_current(link, hashes)
    }

    def is_known(step: LinkStep) -> bool:
        if (step.members, step.carrier) not in groups:
            return False
        return len(step.members) > 2 or all(
            (one, other, step.carrier) in links for one, other in permutations(step.members)
        )

    return _without(steps, [step for step in steps if is_known(step)])


def _without(steps: tuple[LinkStep, ...], dropped: Iterable[LinkStep]) -> tuple[LinkStep, ...]:
    """The rest, which waits for what the dropped ones would have waited for."""
    gone = {step.name: step.after for step in dropped}
    before: dict[str, tuple[str, ...]] = {}
    kept = []
    for step in steps:
        after = {name for earlier in step.after for name in before.get(earlier, (earlier,))}
        if step.name in gone:
            before[step.name] = tuple(sorted(after))
        else:
            kept.append(msgspec.structs.replace(step, after=tuple(sorted(after))))
    return tuple(kept)


def _host(member: str) -> str:
    return member.partition("/")[0]


async def _probe_links(
    fleet: Fleet,
    facts: ClusterFacts,
    steps: tuple[LinkStep, ...],
    order: ProbeDevices,
    on_progress: OnProgress,
) -> tuple[list[LinkReport], list[FleetError]]:
    """All hosts at once: they meet each other. Raises E501; other troubles are returned."""
    members = sorted({_host(member) for step in steps for member in step.members})
    hosts = [host for host in facts.hosts if host.name in members]
    on_progress(f"measuring {len(steps)} links and groups of {len(hosts)} hosts")
    hashes = hardware_of(facts)
    request = ProbeLinks(
        probe_id=f"probe-{secrets.token_hex(6)}",
        keeper=hosts[0].name,
        members=tuple(
            HostAddress(host=host.name, address=host.cluster_address, port=host.cluster_port) for host in hosts
        ),
        steps=steps,
        hardware={host.name: hashes[host.name] for host in hosts},
        sizes=order.sizes,
        even_serving=order.even_serving,
    )
    reports: list[LinkReport] = []
    troubles: list[FleetError] = []

    async def ask(host: str) -> None:
        try:
            reports.append(await fleet.post(host, "/v1/probe/links", request, LinkReport, timeout_s=ANSWER_LIMIT_S))
        except FleetError as error:
            troubles.append(error)

    async with asyncio.TaskGroup() as group:
        for host in hosts:
            group.create_task(ask(host.name))
    _raise_refusal(troubles)
    failed = {failure.members: failure.message for report in reports for failure in report.failures}
    troubles += [
        FleetError("E802", f"link {' - '.join(ends)} was not measured: {message}", host=_host(ends[0]))
        for ends, message in sorted(failed.items())
    ]
    return reports, sorted(troubles, key=lambda each: (each.host, each.message))
