"""Take away all that bootstrap put on hosts, from each host's own manifest, and verify that nothing is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from agent.errors import FleetError
from odctl.bootstrap.fitness import OUR_NAMES
from odctl.bootstrap.probe import Manifest, ProbeFacts, probe_host
from odctl.bootstrap.run import MAX_PARALLEL, HostOutcome, HostProgress, OnProgress, script
from odctl.bootstrap.steps import Run, Step
from odctl.inventory import Host
from odctl.ssh.transport import Transport

OPERATORS_OWN = "clusters"
"""Directory of the operator's authorities: where the operator's machine is a host too, it lies in the prefix."""
MAX_LEFTOVERS_SHOWN = 5


async def uninstall_hosts(
    hosts: Sequence[Host],
    *,
    transport_of: Callable[[str], Transport],
    on_progress: OnProgress | None = None,
) -> tuple[HostOutcome, ...]:
    """Remove the agent from every host, at most 16 at a time. Never raises for a host's own trouble."""
    gate = asyncio.Semaphore(MAX_PARALLEL)

    async def one(host: Host) -> HostOutcome:
        async with gate:
            transport = transport_of(host.name)
            try:
                return await uninstall_host(transport, host=host, on_progress=on_progress)
            finally:
                await transport.close()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(host)) for host in hosts]
    return tuple(task.result() for task in tasks)


async def uninstall_host(transport: Transport, *, host: Host, on_progress: OnProgress | None = None) -> HostOutcome:
    """Stop everything of ours on one host and remove it. `unchanged`: there was nothing."""
    began = time.monotonic()
    outcome = HostOutcome(host=host.name, state="unchanged")
    step_name = "probe"

    def report(progress: HostProgress) -> None:
        if on_progress:
            on_progress(progress)

    report(HostProgress(host=host.name, state="probing", step=step_name))
    try:
        facts = await probe_host(transport, prefix=host.prefix)
        steps = plan_uninstall(facts, daemon_script=script("daemon.sh"))
        for index, step in enumerate(steps):
            step_name = step.name
            report(HostProgress(host=host.name, state="working", step=step_name, index=index, total=len(steps)))
            assert isinstance(step.action, Run)
            result = await transport.run(step.action.argv, stdin=step.action.stdin, timeout_s=step.timeout_s)
            if result.exit_status != 0:
                said = result.stderr.decode(errors="replace").strip() or result.text.strip()
                raise FleetError("E301", f"{step.name}: {said}", hint=step.hint, host=host.name)
        if steps:
            await _restore_linger(transport, facts)
            step_name = "verify that nothing is left"
            await _verify(transport, facts)
            outcome = msgspec.structs.replace(outcome, state="changed", changes=tuple(step.name for step in steps))
        report(HostProgress(host=host.name, state="done", step=step_name))
    except FleetError as error:
        report(HostProgress(host=host.name, state="failed", step=step_name))
        outcome = msgspec.structs.replace(
            outcome,
            state="failed",
            failed_step=step_name,
            error=msgspec.structs.replace(error.detail, host=host.name),
        )
    return msgspec.structs.replace(outcome, seconds=time.monotonic() - began)


def plan_uninstall(facts: ProbeFacts, *, daemon_script: bytes) -> tuple[Step, ...]:
    """Steps that leave nothing, the manifest last so that an interrupted removal can be taken up. Pure.

    Raises FleetError E304 where files look like ours but no manifest says so.
    """
    prefix, manifest = facts.prefix, facts.known_manifest
    if manifest is None:
        ours = sorted(set(OUR_NAMES) & set(facts.entries.split()))
        if not ours:
            return ()
        if ours == ["install.lock"]:
            # All that an operator leaves who was killed before the manifest was written.
            remove = Run(argv=("rmdir", "--", f"{prefix}/install.lock"))
            return (Step(name="remove the lock", action=remove, unless="there is no lock"),)
        raise FleetError(
            "E304",
            f"{prefix} holds {', '.join(ours)}, but no manifest that can be read: they may not be ours",
            hint=f"look, and remove {prefix} by hand",
        )
    steps = []
    if manifest.unit and facts.has_user_bus:
        disable = ("env", f"XDG_RUNTIME_DIR={facts.runtime_directory}", "systemctl", "--user")
        steps.append(
            Step(
                name="disable the unit",
                action=Run(argv=(*disable, "disable", "--now", manifest.unit)),
                unless="the manifest names no unit",
                timeout_s=60.0,
            )
        )
    steps.append(
        Step(
            name="stop agent, ranks and gateways",
            action=Run(argv=("sh", "-s", "--", "stop-all", prefix), stdin=daemon_script),
            unless="there is no manifest",
            timeout_s=90.0,
        )
    )
    paths = [f"{prefix}/{name}" for name in manifest.paths if name != "manifest.json" and is_plain(name)]
    steps.append(
        Step(
            name="remove files",
            action=Run(argv=("rm", "-rf", "--", *paths)),
            unless="there is no manifest",
            timeout_s=600.0,
            hint="files of another user in the prefix must be removed by that user",
        )
    )
    steps.append(
        Step(
            name="remove the manifest",
            action=Run(argv=("rm", "-f", "--", f"{prefix}/manifest.json")),
            unless="there is no manifest",
        )
    )
    return tuple(steps)


def is_plain(name: str) -> bool:
    """A manifest is a file that anyone with the account may have edited: it names entries of the prefix only."""
    return bool(name) and "/" not in name and name not in (".", "..")


async def _restore_linger(transport: Transport, facts: ProbeFacts) -> None:
    """As we found it, unless another agent of the account still needs it."""
    manifest: Manifest | None = facts.known_manifest
    if manifest is None or not manifest.unit or manifest.had_linger or not facts.has_user_bus:
        return
    runtime = f"XDG_RUNTIME_DIR={facts.runtime_directory}"
    others = await transport.run(
        ["env", runtime, "systemctl", "--user", "list-unit-files", "--no-legend", "odctl-agent-*"]
    )
    if not others.text.strip():
        await transport.run(["loginctl", "disable-linger"])


async def _verify(transport: Transport, facts: ProbeFacts) -> None:
    prefix = facts.prefix
    # Fails where the prefix is a mount point or holds the operator's own directory: what counts is what find says.
    await transport.run(["rmdir", "--", prefix])
    own = f"{prefix}/{OPERATORS_OWN}"
    found = await transport.run(
        ["find", prefix, "-mindepth", "1", "!", "-path", own, "!", "-path", f"{own}/*"], timeout_s=120.0
    )
    left = found.text.split("\n")[:-1]
    if left:
        shown = ", ".join(left[:MAX_LEFTOVERS_SHOWN]) + (" …" if len(left) > MAX_LEFTOVERS_SHOWN else "")
        raise FleetError(
            "E304",
            f"{len(left)} paths are left that no manifest of ours names: {shown}",
            hint=f"they are not ours; remove {prefix} by hand if they are not needed",
        )
