"""The operator's part of apply: look, compare, ask, hand the plan to its controller, follow.

The controller performs the transaction (stage, barrier, switch, roll back). Closing this process changes nothing:
what it holds is only the view.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts, HostFacts
from agent.planner.check import check_plan
from agent.planner.file import plan_from_toml, plan_hash, plan_to_toml
from agent.planner.plan import Plan, draft_places
from agent.planner.staleness import what_moved
from agent.planner.words import bytes_words
from agent.wire.agent import (
    AbortRequest,
    ApplyEvent,
    ApplyPhase,
    ApplyRequest,
    DeploymentRecord,
    DestroyRequest,
    Done,
    HostAddress,
    ModelManifest,
    RunReport,
)
from agent.wire.history import Cause
from odctl.deployments import DeploymentSight, FleetDeployments, read_deployments
from odctl.fleet import Fleet
from odctl.fleet.operator import operator_name
from odctl.model_source import check_model, push_model
from odctl.probing import add_probes

OnEvent = Callable[[ApplyEvent], Awaitable[None]]


class ApplyPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What an apply would do, against what runs. `lines` are for people."""

    plan: Plan
    plan_hash: str
    running: DeploymentRecord | None
    """None: nothing of that name runs."""
    is_noop: bool
    lines: tuple[str, ...]
    manifest: ModelManifest
    draft: ModelManifest | None = None
    facts: ClusterFacts

    @property
    def running_generation(self) -> int:
        return self.running.generation if self.running is not None else 0

    @property
    def running_hash(self) -> str:
        return self.running.plan_hash if self.running is not None else ""


async def read_facts(
    fleet: Fleet, cluster: str, *, hosts: Iterable[str] | None = None
) -> tuple[ClusterFacts, dict[str, FleetError]]:
    """Facts of the hosts that answer, with what was measured of them, and why the others do not. None: of all."""
    answers = await fleet.get_all("/v1/facts", HostFacts, hosts=hosts)
    known = [answer for answer in answers.values() if not isinstance(answer, FleetError)]
    missing = {host: answer for host, answer in answers.items() if isinstance(answer, FleetError)}
    facts = ClusterFacts(cluster=cluster, hosts=tuple(sorted(known, key=lambda host: host.name)))
    return await add_probes(fleet, facts), missing


async def add_runs(fleet: Fleet, facts: ClusterFacts) -> ClusterFacts:
    """The facts with what deployments on this cluster did. A host of an earlier release has nothing to tell."""
    answers = await fleet.get_all("/v1/runs", RunReport)
    found = [run for answer in answers.values() if not isinstance(answer, FleetError) for run in answer.runs]
    found.sort(key=lambda run: (run.measured_at_s, run.deployment, run.plan_hash, run.streams))
    return msgspec.structs.replace(facts, runs=tuple(found))


async def preview_apply(fleet: Fleet, plan: Plan, *, cluster: str) -> ApplyPreview:
    """Hold the plan against the fleet as it is now.

    Raises the first host's E2xx when a host of the plan is out of reach, E401 or E402 when the plan is stale or a
    model has changed, E6xx when it does not fit.
    """
    if plan.serving.trusted_network and not fleet.is_network_trusted:
        raise FleetError(
            "E106",
            "the plan has ranks talk in plaintext between hosts, and the inventory does not trust the network",
            hint="plan again, or set `trusted_network = true` in the inventory's [cluster]",
        )
    facts, missing = await read_facts(fleet, cluster)
    for host in plan.hosts:
        if host in missing:
            raise missing[host]
        if facts.host(host) is None:
            raise FleetError(
                "E106", f"the plan needs host {host}, which the inventory does not have", hint="plan again"
            )
    moved = what_moved(plan, facts)
    if moved:
        raise FleetError(
            "E401", "the plan is stale: " + "; ".join(moved), hint="odctl plan makes one of the cluster as it is"
        )
    deployments = await read_deployments(fleet)
    sight = deployments.get(plan.name)
    manifest = await check_model(fleet, plan.model)
    draft = await check_model(fleet, plan.draft) if plan.draft is not None else None
    problems = check_plan(plan, manifest.spec, facts, draft=draft.spec if draft is not None else None)
    if problems:
        first = problems[0]
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise FleetError(first.code, f"{first.path}: {first.message}{more}", hint=first.way_out, host=first.host)
    new_hash = plan_hash(plan)
    old_hash = sight.record.plan_hash if sight else ""
    is_serving = sight is not None and sight.status is not None and sight.status.state == "serving"
    return ApplyPreview(
        plan=plan,
        plan_hash=new_hash,
        running=sight.record if sight else None,
        is_noop=new_hash == old_hash and is_serving,
        lines=tuple(_difference(plan, sight)),
        manifest=manifest,
        draft=draft,
        facts=facts,
    )


async def apply_plan(
    fleet: Fleet,
    preview: ApplyPreview,
    *,
    on_event: OnEvent,
    holder: str,
    stop_after: ApplyPhase | None = None,
    cause: Cause = "apply",
    reason: str = "",
) -> ApplyEvent:
    """Hand the plan to its controller and follow to the end. Raises what the controller raised."""
    plan = preview.plan
    controller = plan.controllers[0]
    for ref, manifest in ((plan.model, preview.manifest), (plan.draft, preview.draft)):
        if ref is None or manifest is None or ref.source_host:
            continue
        sent = await push_model(fleet, controller, ref, manifest)
        if sent:
            message = f"model {ref.name} brought here: {sent} bytes"
            await on_event(
                ApplyEvent(
                    phase="prepare",
                    state="progress",
                    host=controller,
                    message=message,
                    done=sent,
                    total=sent,
                    at_s=time.time(),
                )
            )
    request = ApplyRequest(
        plan_toml=plan_to_toml(plan),
        plan_hash=preview.plan_hash,
        spec=preview.manifest.spec,
        draft_spec=preview.draft.spec if preview.draft is not None else None,
        members=tuple(_address(host) for host in preview.facts.hosts if host.name in plan.hosts),
        sources=tuple(_address(host) for host in preview.facts.hosts if host.name in _sources_beside(plan)),
        expected_generation=preview.running_generation,
        running=preview.running,
        holder=holder,
        stop_after=stop_after,
        cause=cause,
        reason=reason,
    )
    return await _follow(fleet, controller, "/v1/apply", request, on_event)


async def abort_apply(fleet: Fleet, plan: Plan, *, holder: str) -> str:
    """Ask the controller to stop before its next phase and roll back; what it says to that."""
    request = AbortRequest(deployment=plan.name, holder=holder)
    return (await fleet.post(plan.controllers[0], "/v1/abort", request, Done)).message


async def destroy(fleet: Fleet, deployments: FleetDeployments, name: str, *, on_event: OnEvent) -> ApplyEvent:
    """Stop a deployment everywhere, through its controller or, when that is out of reach, any member."""
    record = deployments.one(name).record
    members = [member.host for member in record.members if member.host not in deployments.unreachable]
    through = record.controller if record.controller in members else (members or [record.controller])[0]
    request = DestroyRequest(deployment=record.name, holder=operator_name())
    return await _follow(fleet, through, "/v1/destroy", request, on_event)


async def _follow(fleet: Fleet, host: str, route: str, request: msgspec.Struct, on_event: OnEvent) -> ApplyEvent:
    last: ApplyEvent | None = None
    async with aclosing(fleet.stream(host, "POST", route, request, ApplyEvent)) as events:
        async for event in events:
            last = event
            await on_event(event)
    if last is None or (last.error is None and last.phase != "done"):
        raise FleetError(
            "E211",
            "the controller's agent ended the stream before the apply was done",
            hint="it goes on or rolls back by itself: look at `odctl status`, then apply again",
            host=host,
        )
    if last.error is not None:
        raise FleetError.from_detail(last.error)
    return last


def _sources_beside(plan: Plan) -> set[str]:
    """Hosts that have a model of the plan, and no part in it."""
    refs = [plan.model, *([plan.draft] if plan.draft is not None else [])]
    return {ref.source_host for ref in refs} - set(plan.hosts)


def _address(host: HostFacts) -> HostAddress:
    return HostAddress(host=host.name, address=host.cluster_address, port=host.cluster_port)


def _difference(plan: Plan, sight: DeploymentSight | None) -> list[str]:
    """One line a rank (added, kept, moved or removed), then one for each setting that changes."""
    old: dict[tuple[str, str], str] = {}
    running: Plan | None = None
    if sight is not None and sight.status is not None:
        running = plan_from_toml(sight.status.plan_toml, file="running plan")
        old = _holdings(running)
    new = _holdings(plan)
    lines = []
    for place in sorted(old.keys() | new.keys()):
        name = "/".join(place)
        if place not in old:
            lines.append(f"+ {name}: {new[place]}")
        elif place not in new:
            lines.append(f"- {name}: {old[place]}")
        elif old[place] != new[place]:
            lines.append(f"~ {name}: {old[place]} -> {new[place]}")
        else:
            lines.append(f"  {name}: {new[place]}")
    return lines + (_settings_difference(running, plan) if running is not None else [])


def _settings_difference(old: Plan, new: Plan) -> list[str]:
    """What is served otherwise on the same ranks, by the names that the plan file has for it."""
    before, after = _settings(old), _settings(new)
    return [
        f"~ {name}: {_setting(before.get(name))} -> {_setting(after.get(name))}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _settings(plan: Plan) -> dict[str, object]:
    tables = {"serving": plan.serving, "healing": plan.healing}
    found: dict[str, object] = {"model": f"{plan.model.name} {plan.model.digest[:12]}".rstrip()}
    for table, values in tables.items():
        found |= {f"{table}.{name}": getattr(values, name) for name in values.__struct_fields__}
    return found | {"controllers": ", ".join(plan.controllers)}


def _setting(value: object) -> str:
    """As the plan file writes it."""
    return str(value).lower() if isinstance(value, bool) else '""' if value in ("", None) else str(value)


def _holdings(plan: Plan) -> dict[tuple[str, str], str]:
    held = {}
    for replica in plan.replicas:
        for stage in replica.stages:
            for shard in stage.shards:
                heads = f", heads {shard.heads[0]}-{shard.heads[1] - 1}" if len(stage.shards) > 1 else ""
                held[(shard.host, shard.device)] = f"layers {stage.layers[0]}-{stage.layers[1] - 1}{heads}"
    if plan.draft is not None:
        words = f", draft model {plan.draft.name} ({bytes_words(plan.draft.weight_bytes)})"
        for place in draft_places(plan):
            held[place.shard.host, place.shard.device] += words
    return held
