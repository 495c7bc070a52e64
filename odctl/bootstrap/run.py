"""Bootstrap many hosts at once: probe, plan, perform, hear from the agent; undo and report where that fails.

A failing host never stops the others. What was done on it is undone in reverse order, and its old agent runs
again; so it is when the operator interrupts. An operator who is killed leaves steps that the next bootstrap takes
up where they stood.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.wire.agent import PROTOCOL_VERSION, AgentConfig, Handshake
from odctl.bootstrap.bundle import Bundle
from odctl.bootstrap.fitness import Wanted, check_host
from odctl.bootstrap.probe import ProbeFacts, ask_handshake, probe_host
from odctl.bootstrap.steps import (
    STALE_LOCK_S,
    AwaitHandshake,
    BootstrapPlan,
    Certify,
    Run,
    Step,
    Upload,
    linger_step,
    plan_bootstrap,
)
from odctl.inventory import Host, Inventory
from odctl.pki import ClusterAuthority, LeafIdentity
from odctl.ssh.transport import RemoteResult, Transport

MAX_PARALLEL = 16
UNDO_TIMEOUT_S = 60.0
POLL_S = 0.2
STDERR_TAIL = 600

OutcomeState = Literal["unchanged", "changed", "failed"]
ProgressState = Literal["probing", "working", "done", "failed", "interrupted"]


class HostProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A host reached another step: `index` of `total` begins, or it is done."""

    host: str
    state: ProgressState
    step: str = ""
    index: int = 0
    total: int = 0


class HostOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a host ended. `changes` are the steps that were performed and stand."""

    host: str
    state: OutcomeState
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    release: str = ""
    is_degraded: bool = False
    seconds: float = 0.0
    failed_step: str = ""
    error: ErrorDetail | None = None
    is_undone: bool = False
    """After a failure: the host is as it was before."""


OnProgress = Callable[[HostProgress], None]


async def bootstrap_hosts(
    inventory: Inventory,
    hosts: Sequence[Host],
    *,
    bundle: Bundle,
    authority: ClusterAuthority,
    transport_of: Callable[[str], Transport],
    on_progress: OnProgress | None = None,
) -> tuple[HostOutcome, ...]:
    """Bring every host to `bundle`, at most 16 at a time. Never raises for a host's own trouble."""
    gate = asyncio.Semaphore(MAX_PARALLEL)

    async def one(host: Host) -> HostOutcome:
        async with gate:
            transport = transport_of(host.name)
            bootstrap = HostBootstrap(
                transport,
                host=host,
                cluster=inventory.cluster,
                bundle=bundle,
                authority=authority,
                on_progress=on_progress or _ignore_progress,
            )
            try:
                return await bootstrap.bring_up()
            finally:
                await transport.close()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(host)) for host in hosts]
    return tuple(task.result() for task in tasks)


class HostBootstrap:
    """One host's way from what it is to what is wanted."""

    def __init__(
        self,
        transport: Transport,
        *,
        host: Host,
        cluster: str,
        bundle: Bundle,
        authority: ClusterAuthority,
        on_progress: OnProgress,
    ) -> None:
        self._transport = transport
        self._host = host
        self._bundle = bundle
        self._authority = authority
        self._on_progress = on_progress
        self._identity = LeafIdentity(cluster=cluster, host=host.name, cluster_address=host.cluster_address)
        self._step = ""
        self._done: list[Step] = []

    async def bring_up(self) -> HostOutcome:
        began = time.monotonic()
        outcome = HostOutcome(host=self._host.name, state="unchanged", release=self._bundle.release)
        try:
            outcome = await self._bring_up(outcome)
            self._report("done")
        except FleetError as error:
            self._report("failed")
            outcome = msgspec.structs.replace(
                outcome,
                state="failed",
                failed_step=self._step,
                error=msgspec.structs.replace(error.detail, host=self._host.name),
                is_undone=isinstance(error, UndoneError),
            )
        return msgspec.structs.replace(outcome, seconds=time.monotonic() - began)

    async def _bring_up(self, outcome: HostOutcome) -> HostOutcome:
        self._report("probing", step="probe")
        facts = await self._probe()
        wanted = self._wanted(facts)
        check_host(facts, wanted)
        facts = await self._ask_for_linger(facts)
        plan = plan_bootstrap(facts, wanted, daemon_script=script("daemon.sh"))
        if plan.steps:
            await self._perform_all(plan, facts)
        return msgspec.structs.replace(
            outcome,
            state="changed" if self._done else "unchanged",
            changes=tuple(step.name for step in self._done),
            warnings=plan.warnings,
            is_degraded=plan.config.is_degraded,
        )

    async def _probe(self) -> ProbeFacts:
        return await probe_host(
            self._transport,
            prefix=self._host.prefix,
            python=self._host.python or "",
            venv=self._bundle.venv,
            packages=tuple(requirement.name for requirement in self._bundle.requirements),
        )

    def _wanted(self, facts: ProbeFacts) -> Wanted:
        host = self._host
        return Wanted(
            config=AgentConfig(
                cluster=self._identity.cluster,
                host=host.name,
                prefix=facts.prefix,
                cluster_address=host.cluster_address,
                cluster_port=host.cluster_port,
                labels=host.labels,
                memory_fraction=host.limits.memory_fraction,
                devices=host.limits.devices or (),
                threads=host.limits.threads or 0,
                model_dirs=host.model_dirs,
            ),
            bundle=self._bundle,
            ca=self._authority.ca_pem,
            renew_leaf=self._authority.why_renew(facts.leaf, self._identity, now=datetime.now(UTC)),
            python=host.python or "",
        )

    async def _ask_for_linger(self, facts: ProbeFacts) -> ProbeFacts:
        """Where lingering is refused, a unit would die with the login: the agent is detached instead."""
        step = linger_step(facts)
        if step is None:
            return facts
        assert isinstance(step.action, Run)
        answer = await self._transport.run(step.action.argv, timeout_s=step.timeout_s)
        if answer.exit_status != 0:
            return msgspec.structs.replace(facts, has_user_bus=False)
        self._done.append(step)
        return facts

    async def _perform_all(self, plan: BootstrapPlan, facts: ProbeFacts) -> None:
        await self._lock(facts)
        try:
            for index, step in enumerate(plan.steps):
                self._report("working", step=step.name, index=index, total=len(plan.steps))
                try:
                    self._done.append(step)
                    await self._perform(step)
                except FleetError as error:
                    raise await self._undo_all(plan, facts, error) from error
                except asyncio.CancelledError:
                    # The operator's first Ctrl-C: put the host back. A second one drops the connection.
                    ended = await self._undo_all(plan, facts, FleetError("E301", f"interrupted at {step.name}"))
                    self._report("interrupted", step=ended.message)
                    raise
        finally:
            await self._unlock(facts)

    async def _perform(self, step: Step) -> None:
        match step.action:
            case Run(argv=argv, stdin=stdin):
                await self._run(step, argv, stdin)
            case Upload(data=data, target=target, mode=mode):
                await self._transport.put_bytes(data, target, mode=mode)
            case Certify(argv=argv, target=target):
                request = await self._run(step, argv, b"")
                leaf = self._authority.issue(request.stdout, self._identity, now=datetime.now(UTC))
                await self._transport.put_bytes(leaf, target, mode=0o644)
            case AwaitHandshake():
                await self._await_handshake(step.action, step.timeout_s)

    async def _run(self, step: Step, argv: Sequence[str], stdin: bytes) -> RemoteResult:
        result = await self._transport.run(argv, stdin=stdin, timeout_s=step.timeout_s)
        if result.exit_status != 0:
            raise FleetError(
                "E301",
                f"{step.name}: `{argv[0]}` ended with status {result.exit_status}: {_tail(result)}",
                hint=step.hint,
                host=self._host.name,
            )
        return result

    async def _await_handshake(self, action: AwaitHandshake, timeout_s: float) -> None:
        handshake: Handshake | None = None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            handshake = await ask_handshake(self._transport, action.socket)
            if handshake and handshake.release == action.release and handshake.protocol == PROTOCOL_VERSION:
                return
            await asyncio.sleep(POLL_S)
        heard = "nothing answers"
        if handshake:
            heard = f"release {handshake.release} answers, protocol {handshake.protocol}"
        log = await self._transport.run(["tail", "-n", "5", action.log], timeout_s=10.0)
        last_words = " | ".join(log.text.strip().splitlines())[-STDERR_TAIL:]
        raise FleetError(
            "E302",
            f"the agent did not answer as release {action.release} within {timeout_s:.0f} s: {heard}",
            hint=f"its log ends: {last_words}" if last_words else f"its log {action.log} is empty",
            host=self._host.name,
        )

    async def _undo_all(self, plan: BootstrapPlan, facts: ProbeFacts, error: FleetError) -> FleetError:
        """The error to report once the steps taken are undone and the old agent runs."""
        failed_step = self._step
        troubles = []
        for step in reversed(self._done):
            for action in step.undo:
                troubles += await self._try(f"undo {step.name}", action)
        if any(step.touches_agent for step in self._done):
            for step in plan.recover:
                try:
                    await self._perform(step)
                except FleetError as trouble:
                    troubles.append(f"{step.name}: {trouble.message}")
        if not facts.exists:
            # Not our business when it cannot go: then something of another's lies in it.
            await self._try("remove the prefix", Run(argv=("rmdir", f"{facts.prefix}/install.lock", facts.prefix)))
        self._done.clear()
        self._step = failed_step
        if troubles:
            return FleetError(
                error.code,
                f"{error.message}; and it could not be undone: {'; '.join(troubles)}",
                hint=error.hint or "bootstrap it again once the cause is gone",
                host=self._host.name,
            )
        stands = f"rolled back to release {facts.current}" if facts.current else "nothing was left behind"
        return UndoneError(error.code, f"{error.message}; {stands}", hint=error.hint, host=self._host.name)

    async def _try(self, name: str, action: Run | Upload) -> list[str]:
        try:
            match action:
                case Run(argv=argv, stdin=stdin):
                    result = await self._transport.run(argv, stdin=stdin, timeout_s=UNDO_TIMEOUT_S)
                    return [f"{name}: {_tail(result)}"] if result.exit_status != 0 else []
                case Upload(data=data, target=target, mode=mode):
                    await self._transport.put_bytes(data, target, mode=mode)
                    return []
        except FleetError as error:
            return [f"{name}: {error.message}"]

    async def _lock(self, facts: ProbeFacts) -> None:
        lock = f"{facts.prefix}/install.lock"
        if facts.lock_age_s > STALE_LOCK_S:
            await self._transport.run(["rmdir", "--", lock])
        made = await self._transport.run(["mkdir", "-p", "-m", "0700", "--", facts.prefix])
        if made.exit_status == 0:
            # mkdir succeeds for one of two: that is the lock.
            made = await self._transport.run(["mkdir", "--", lock])
        if made.exit_status == 0:
            return
        if (await self._transport.run(["test", "-d", lock])).exit_status == 0:
            raise FleetError(
                "E501",
                "another bootstrap of this host is under way",
                hint=f"wait for it, or remove {lock} there if nobody runs one",
                host=self._host.name,
            )
        raise FleetError("E301", f"cannot begin in {facts.prefix}: {_tail(made)}", host=self._host.name)

    async def _unlock(self, facts: ProbeFacts) -> None:
        await self._try("unlock", Run(argv=("rmdir", "--", f"{facts.prefix}/install.lock")))

    def _report(self, state: ProgressState, *, step: str = "", index: int = 0, total: int = 0) -> None:
        if step:
            self._step = step
        self._on_progress(
            HostProgress(host=self._host.name, state=state, step=self._step, index=index, total=total)
        )


class UndoneError(FleetError):
    """A step failed, and the host is as it was before."""


def script(name: str) -> bytes:
    """One of the shell scripts beside this module, which go to `sh -s` on standard input."""
    return importlib.resources.files("odctl.bootstrap").joinpath(name).read_bytes()


def _tail(result: RemoteResult) -> str:
    text = result.stderr.decode(errors="replace").strip() or result.text.strip() or "it said nothing"
    return " | ".join(text.splitlines())[-STDERR_TAIL:]


def _ignore_progress(progress: HostProgress) -> None:
    del progress
