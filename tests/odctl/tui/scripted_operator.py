"""A host operator that does as the test says and remembers what it was asked."""

from __future__ import annotations

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.facts.sample import DeviceProcess
from agent.wire.agent import ApplyEvent, ModelManifest
from agent.wire.host import KernelLog, KernelMessage
from odctl.apply import ApplyPreview
from odctl.draining import Drain, OnDrainEvent
from odctl.logs import LogEntry
from odctl.ssh.shell import ShellCommand
from odctl.tui.app import OdctlApp
from odctl.tui.feed import Feed
from odctl.tui.hosting import HostOperator
from odctl.tui.model.host_extras import HostExtras
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import RefusingApplier
from tests.odctl.tui.test_app import SPEC


class ScriptedOperator:
    """Every deed is refused with `error`, where there is one."""

    def __init__(self, error: FleetError | None = None) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.previews: tuple[ApplyPreview, ...] = (preview(),)
        self.found = extras()
        self._error = error

    async def extras(self, feed: Feed, host: str) -> HostExtras:  # noqa: ARG002 - the Protocol's
        return self.found

    async def plan_drain(self, feed: Feed, host: str) -> Drain:  # noqa: ARG002
        self._note("plan_drain", host)
        return Drain(host=host, previews=self.previews)

    async def drain(self, feed: Feed, drain: Drain, on_event: OnDrainEvent) -> tuple[str, ...]:  # noqa: ARG002
        self._note("drain", drain.host)
        event = msgspec.convert({"phase": "fetch", "state": "started", "host": "cpu01"}, ApplyEvent)
        await on_event("chat", event)
        return tuple(preview.plan.name for preview in drain.previews)

    async def restart_agent(self, feed: Feed, host: str) -> str:  # noqa: ARG002
        self._note("restart", host)
        return "it ends, and systemd starts it again"

    async def end_process(
        self,
        feed: Feed,  # noqa: ARG002
        host: str,
        device: str,
        process: DeviceProcess,
        *,
        is_forced: bool,
    ) -> str:
        self._note("end", host, device, process.pid, process.start_ticks, is_forced)
        return f"SIGTERM was sent to {process.pid}"

    def shell(self, host: str) -> ShellCommand:
        self._note("shell", host)
        return ShellCommand(argv=("ssh", host), environment={})

    def _note(self, *asked: object) -> None:
        self.asked.append(asked)
        if self._error is not None:
            raise self._error


def preview() -> ApplyPreview:
    return ApplyPreview(
        plan=frozen.plan(),
        plan_hash="f" * 64,
        running=frozen.deployment().record,
        is_noop=False,
        lines=("- gpu01/cuda:0: layers 0-19", "+ cpu01/cpu: layers 0-31"),
        manifest=ModelManifest(digest="d" * 64, files=(), spec=SPEC),
        facts=ClusterFacts(cluster="lab", hosts=()),
    )


def extras() -> HostExtras:
    return HostExtras(
        kernel=KernelLog(
            messages=(
                KernelMessage(at_s=frozen.NOW_S - 45, level="info", text="eth0: link becomes ready"),
                KernelMessage(at_s=frozen.NOW_S - 40, level="err", text="NVRM: Xid (PCI:0000:9d:00): 79"),
            ),
            source="kmsg",
        ),
        entries=(
            LogEntry(
                at_s=frozen.NOW_S - 39, host="gpu01", source="journal", level="error", text="FaultSeen chat g3"
            ),
            LogEntry(at_s=frozen.NOW_S - 38, host="gpu01", source="agent", level="info", text="rank ended"),
        ),
    )


def make_app(feed: Feed, operator: HostOperator | None = None) -> OdctlApp:
    app = OdctlApp(
        feed,
        clock=frozen.FrozenClock(),
        applier=RefusingApplier(),
        host_operator=operator if operator is not None else ScriptedOperator(),
    )
    app.animation_level = "none"
    return app
