"""Has devices and links measured by processes of the engine, within a limit, and keeps what they found.

Figures are kept in the journal under the hash of the hardware that they are of: those of another are not shown.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import DeviceFacts, HostFacts
from agent.facts.measured import hardware_hash
from agent.facts.probe import DeviceProbe, GroupProbe, HostProbe, LinkProbe, ProbeRecord
from agent.journal import Journal
from agent.supervisor.measurement import MeasurementDied, run_measurement
from agent.supervisor.paths import HostPaths
from agent.supervisor.ranks import tls_files
from agent.wire.agent import AgentConfig
from agent.wire.probe import (
    LOAD_LIMIT_S,
    DeviceProbeConfig,
    DeviceReport,
    LinkProbeConfig,
    LinkReport,
    ModelProbeConfig,
    ModelReport,
    ProbeDevices,
    ProbeLinks,
    ProbeModel,
    serving_refusal,
)

log = logging.getLogger(__name__)

DEVICE_LIMIT_S = 100
"""Of one device, once torch is loaded; its process ends itself by then. A core takes 15 to 20 s, a third of a slow
one took more than 45."""
REHEARSAL_LIMIT_S = 150
"""Likewise. Layers of 35 million weights take 0.3 of a core 36 s, and twice as long when others have the caches."""
LINKS_LIMIT_S = 60
KILL_GRACE_S = 2.0
LOG_NAME = "probe"
HOST_KEY = "probe/host/"
LINK_KEY = "probe/link/"
GROUP_KEY = "probe/group/"

MAX_REHEARSALS = 24
"""Shares of models that are kept of a device: the latest."""

Report = TypeVar("Report", DeviceReport, LinkReport, ModelReport)


class Probes:
    def __init__(
        self,
        config: AgentConfig,
        paths: HostPaths,
        journal: Journal,
        *,
        serving: Callable[[], Iterable[str]],
    ) -> None:
        """`serving` names the deployments that have ranks here."""
        self._config = config
        self._paths = paths
        self._journal = journal
        self._serving = serving
        self._is_busy = False

    def record(self, facts: HostFacts) -> ProbeRecord:
        """What is known of this host with its hardware of now."""
        hardware = hardware_hash(facts)
        stored = self._journal.get_state(HOST_KEY + hardware)
        links = [_decoded(value, LinkProbe) for value in self._journal.list_state(LINK_KEY).values()]
        groups = [_decoded(value, GroupProbe) for value in self._journal.list_state(GROUP_KEY).values()]
        return ProbeRecord(
            host=self._config.host,
            hardware=hardware,
            probe=_decoded(stored, HostProbe) if stored is not None else None,
            links=tuple(link for link in links if link is not None and link.source_hardware == hardware),
            groups=tuple(group for group in groups if group is not None and group.hardware[0] == hardware),
            serving=tuple(sorted(set(self._serving()))),
        )

    async def measure_devices(self, request: ProbeDevices, facts: HostFacts) -> HostProbe:
        """The CPU, then all GPUs at once. Raises E501 while a device serves or is probed, E804, E805, E819."""
        self._begin(request.even_serving)
        begun = time.monotonic()
        try:
            reports = []
            for devices in (_of_kind(facts, "cpu"), _of_kind(facts, "cuda")):
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            self._measure_device(device, request, has_disk=device is facts.devices[0])
                        )
                        for device in devices
                    ]
                reports += [task.result() for task in tasks]
        except* FleetError as failed:
            raise _first_of(failed) from None
        finally:
            self._is_busy = False
        disks = [report.disk_read_bytes_per_s for report in reports if report.disk_read_bytes_per_s is not None]
        probe = HostProbe(
            host=self._config.host,
            hardware=hardware_hash(facts),
            measured_at_s=time.time(),
            took_s=time.monotonic() - begun,
            is_quick=request.sizes.is_quick,
            devices=tuple(report.device for report in reports),
            disk_read_bytes_per_s=disks[0] if disks else None,
        )
        self._journal.put_state(HOST_KEY + probe.hardware, msgspec.msgpack.encode(probe))
        self._journal.append("DevicesProbed", body={"hardware": probe.hardware, "took_s": round(probe.took_s, 3)})
        return probe

    async def measure_model(self, request: ProbeModel, facts: HostFacts) -> HostProbe:
        """Rehearse a model on every device, beside what was measured of them before.

        Raises E501 as above, E105 where nothing was measured yet, E804, E805, E819.
        """
        host, hardware = self._config.host, hardware_hash(facts)
        known = self.record(facts).probe
        if known is None:
            raise FleetError(
                "E105", "its devices were not measured yet", hint=f"odctl probe {host} measures them", host=host
            )
        self._begin(request.even_serving)
        try:
            devices = [await self._rehearse(device, request, known) for device in facts.devices]
        finally:
            self._is_busy = False
        probe = msgspec.structs.replace(known, devices=tuple(devices))
        self._journal.put_state(HOST_KEY + hardware, msgspec.msgpack.encode(probe))
        self._journal.append("ModelProbed", body={"hardware": hardware, "model": request.model.name})
        return probe

    async def measure_links(self, order: ProbeLinks) -> LinkReport:
        """All steps of this host's seats, one process each. Raises E501 and E819 as above."""
        self._begin(order.even_serving)
        host = self._config.host
        seats = sorted({seat for step in order.steps for seat in step.members if seat.startswith(f"{host}/")})
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._measure_seat(seat, order)) for seat in seats]
        except* FleetError as failed:
            raise _first_of(failed) from None
        finally:
            self._is_busy = False
        reports = [task.result() for task in tasks]
        for link in (link for report in reports for link in report.links):
            key = f"{LINK_KEY}{link.source_device}>{link.target}/{link.target_device}/{link.carrier}"
            self._journal.put_state(key, msgspec.msgpack.encode(link))
        for probed in (probed for report in reports for probed in report.groups):
            key = f"{GROUP_KEY}{','.join(probed.members)}/{probed.carrier}"
            self._journal.put_state(key, msgspec.msgpack.encode(probed))
        self._journal.append("LinksProbed", body={"links": sum(len(report.links) for report in reports)})
        return LinkReport(
            host=host,
            links=tuple(link for report in reports for link in report.links),
            groups=tuple(probed for report in reports for probed in report.groups),
            failures=tuple(failure for report in reports for failure in report.failures),
        )

    def _begin(self, even_serving: bool) -> None:
        """Raises E501 where measuring would disturb, or be disturbed by, something else."""
        host = self._config.host
        names = sorted(set(self._serving()))
        if names and not even_serving:
            raise serving_refusal(host, names)
        if self._is_busy:
            raise FleetError("E501", "it is being probed already", hint="ask again in a minute", host=host)
        self._is_busy = True

    async def _measure_device(self, device: DeviceFacts, request: ProbeDevices, *, has_disk: bool) -> DeviceReport:
        config = DeviceProbeConfig(
            host=self._config.host,
            device=device.id,
            kind=device.kind,
            name=device.name,
            threads=self._config.threads,
            sizes=request.sizes,
            disk_dir=str(self._paths.logs.parent) if has_disk else "",
            limit_s=DEVICE_LIMIT_S,
        )
        return await self._run(config, DeviceReport, what=f"the probe of {device.id}")

    async def _rehearse(self, device: DeviceFacts, request: ProbeModel, known: HostProbe) -> DeviceProbe:
        """What is known of a device, with its rehearsals of this model in place of earlier ones."""
        config = ModelProbeConfig(
            host=self._config.host,
            device=device.id,
            threads=self._config.threads,
            order=request,
            limit_s=REHEARSAL_LIMIT_S,
        )
        report = await self._run(config, ModelReport, what=f"the rehearsal of {request.model.name} on {device.id}")
        probe = known.device(device.id)
        assert probe is not None, "figures of this very hardware name its devices"
        widths = request.model.widths
        others = [
            each
            for each in probe.models
            if (each.widths, each.dtype, each.quantisation) != (widths, request.dtype, request.quantisation)
        ]
        return msgspec.structs.replace(probe, models=(*others, *report.models)[-MAX_REHEARSALS:])

    async def _measure_seat(self, seat: str, order: ProbeLinks) -> LinkReport:
        config = LinkProbeConfig(
            seat=seat,
            order=order,
            cluster=self._config.cluster,
            address=self._config.cluster_address,
            agent_socket=str(self._paths.agent_socket),
            tls=tls_files(self._paths),
            threads=self._config.threads,
            limit_s=LINKS_LIMIT_S,
        )
        return await self._run(config, LinkReport, what=f"the probe of {seat}'s links")

    async def _run(
        self, config: DeviceProbeConfig | LinkProbeConfig | ModelProbeConfig, kind: type[Report], *, what: str
    ) -> Report:
        try:
            return await run_measurement(
                "probe",
                config,
                kind,
                paths=self._paths,
                log_name=LOG_NAME,
                threads=config.threads,
                host=self._config.host,
                limit_s=LOAD_LIMIT_S + config.limit_s + KILL_GRACE_S,
            )
        except MeasurementDied as death:
            log.error("probe died", extra={"what": what, "exit_status": death.status})
            raise FleetError(
                "E819",
                f"{what} {_end_of(death.status, config.limit_s)}",
                hint=f"the log `{LOG_NAME}` of that host may say why; odctl probe measures it again",
                host=self._config.host,
            ) from death


def _end_of(status: int, limit_s: int) -> str:
    """How a process without an answer ended, in words."""
    if status == -signal.SIGALRM:
        return f"did not end within {limit_s} s: the host is slower than that, or busy"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status} and no answer"


def _of_kind(facts: HostFacts, kind: str) -> list[DeviceFacts]:
    return [device for device in facts.devices if device.kind == kind]


def _first_of(group: BaseExceptionGroup[FleetError]) -> FleetError:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, FleetError)
    return first


Kept = TypeVar("Kept", HostProbe, LinkProbe, GroupProbe)


def _decoded(value: bytes, kind: type[Kept]) -> Kept | None:
    """None for one that an earlier release wrote in another form: it is measured again."""
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.DecodeError:
        return None
