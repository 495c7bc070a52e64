"""The gateway processes of one host: one per listening address, shared by all deployments behind it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httpx
import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.supervisor.paths import HostPaths
from agent.supervisor.processes import ProcessExit, ProcessRecord, ProcessTable
from agent.supervisor.ranks import tls_files
from agent.wire.agent import AgentConfig, TellGateway
from agent.wire.gateway import (
    AskRequests,
    AttachBackend,
    BackendRef,
    BackendStatus,
    CancelRequest,
    CheckReport,
    GatewayConfig,
    GatewayStatus,
    RequestReport,
    RequestView,
)

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 2.0
ATTACH_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 300.0
"""A canary through a large model on slow hosts takes minutes, not seconds."""
POLL_INTERVAL_S = 0.5


class GatewayTable:
    def __init__(self, config: AgentConfig, paths: HostPaths, processes: ProcessTable) -> None:
        self._config = config
        self._paths = paths
        self._processes = processes
        self._statuses: dict[str, GatewayStatus] = {}
        self.died: dict[str, dict[str, str | int | float]] = {}
        """Evidence of gateways that ended unasked, by address."""

    async def ensure(self, listen: str) -> str:
        """Run a gateway there unless one does; the path of its unix socket. Raises E808 when it cannot."""
        name = gateway_name(listen)
        if self._processes.get(name) is None:
            self._spawn(name, listen)
        socket = str(self._paths.socket(name))
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                await self._get_status(socket)
            except (httpx.HTTPError, OSError):
                if self._processes.get(name) is None:
                    evidence = self.died.pop(listen, {})
                    raise FleetError(
                        "E808",
                        f"the gateway on {listen} did not start: {evidence.get('last_log_line', 'no output')}",
                        hint="another program may hold the port: choose another one with [serving] listen",
                        host=self._config.host,
                    ) from None
                if time.monotonic() > deadline:
                    raise FleetError(
                        "E808",
                        f"the gateway on {listen} does not answer within {START_TIMEOUT_S:.0f} s",
                        hint=f"var/log/{name}.log below the prefix says why",
                        host=self._config.host,
                    ) from None
                await asyncio.sleep(0.05)
            else:
                self.died.pop(listen, None)
                return socket

    async def attach(self, listen: str, backend: AttachBackend) -> None:
        await self._post(listen, "attach", backend, timeout_s=ATTACH_TIMEOUT_S)

    async def tell(self, order: TellGateway) -> CheckReport | None:
        timeout_s = {
            "check": CHECK_TIMEOUT_S,
            "activate": ASK_TIMEOUT_S * 5,
            "retire": order.backend.drain_s + ASK_TIMEOUT_S * 5,
            "detach": ASK_TIMEOUT_S * 5,
        }[order.verb]
        answer = await self._post(order.listen, order.verb, order.backend, timeout_s=timeout_s)
        if order.verb == "check":
            return msgspec.msgpack.decode(answer, type=CheckReport)
        return None

    async def ask(self, listen: str) -> tuple[BackendStatus, ...]:
        """Fresh statuses of its backends; none when no gateway runs there."""
        record = self._processes.get(gateway_name(listen))
        if record is None:
            return ()
        try:
            status = await self._get_status(record.socket)
        except (httpx.HTTPError, OSError) as error:
            why = str(error) or type(error).__name__
            raise FleetError(
                "E808", f"the gateway on {listen} does not answer: {why}", host=self._config.host
            ) from error
        self._statuses[listen] = status
        return status.backends

    async def requests(self, listen: str, deployment: str) -> RequestReport:
        """What the gateway there has in flight of a deployment. Raises E808, E812."""
        body = AskRequests(deployment=deployment)
        answer = await self._post(listen, "requests", body, timeout_s=ASK_TIMEOUT_S * 2)
        return msgspec.msgpack.decode(answer, type=RequestReport)

    async def end_request(self, listen: str, order: CancelRequest) -> RequestView:
        """Have it cancel one request; how that one stood. Raises E125, E808, E812."""
        answer = await self._post(listen, "cancel", order, timeout_s=ASK_TIMEOUT_S * 2)
        return msgspec.msgpack.decode(answer, type=RequestView)

    def running(self) -> tuple[str, ...]:
        return tuple(sorted(record.listen for record in self._processes.all("gateway")))

    def backends(self) -> tuple[BackendStatus, ...]:
        """What the gateways said at the last poll."""
        running = self.running()
        return tuple(
            backend for listen, status in self._statuses.items() if listen in running for backend in status.backends
        )

    async def stop(self, listen: str) -> None:
        await self._processes.stop(gateway_name(listen))
        self._statuses.pop(listen, None)

    async def retire(self, deployment: str, *, before_generation: int | None, drain_s: float) -> None:
        """Drain and detach a deployment's backends, all or those older than a generation.

        A gateway left without any backend is stopped.
        """
        for listen in self.running():
            for backend in await self.ask(listen):
                is_old = before_generation is None or backend.generation < before_generation
                if backend.deployment == deployment and is_old:
                    ref = BackendRef(deployment=deployment, generation=backend.generation, drain_s=drain_s)
                    verb = "retire" if drain_s > 0 else "detach"
                    await self._post(listen, verb, ref, timeout_s=drain_s + ASK_TIMEOUT_S * 5)
            await self.stop_if_idle(listen)

    async def stop_if_idle(self, listen: str) -> None:
        """Stop a gateway that has no backend left: its port is free again."""
        if listen in self.running() and not await self.ask(listen):
            await self.stop(listen)

    async def watch(self) -> None:
        """Keep the statuses fresh, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_INTERVAL_S)

    async def look(self) -> None:
        """Ask every gateway once."""
        for listen in self.running():
            try:
                await self.ask(listen)
            except FleetError:
                log.debug("gateway does not answer", extra={"listen": listen})

    def note_exit(self, event: ProcessExit) -> None:
        self._statuses.pop(event.record.listen, None)
        if not event.was_expected:
            log.warning("gateway ended", extra={"listen": event.record.listen, "evidence": event.evidence})
            self.died[event.record.listen] = event.evidence

    def _spawn(self, name: str, listen: str) -> None:
        config = GatewayConfig(
            cluster=self._config.cluster,
            host=self._config.host,
            listen=listen,
            socket=str(self._paths.socket(name)),
            agent_socket=str(self._paths.agent_socket),
            tls=tls_files(self._paths),
            api_keys=self._read_api_keys(),
        )
        self._paths.run.mkdir(parents=True, exist_ok=True)
        path = self._paths.config(name)
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(config))
        record = ProcessRecord(name=name, role="gateway", pid=0, start_ticks=0, socket=config.socket, listen=listen)
        self._processes.spawn(record, ["-m", "agent.api", str(path)])

    def _read_api_keys(self) -> tuple[str, ...]:
        """`etc/api_keys`, one a line; it may be missing."""
        try:
            text = (self._paths.prefix / "etc" / "api_keys").read_text()
        except FileNotFoundError:
            return ()
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    async def _get_status(self, socket: str) -> GatewayStatus:
        async with _client(socket, ASK_TIMEOUT_S) as client:
            response = await client.get("/control/status")
            response.raise_for_status()
            return msgspec.msgpack.decode(response.content, type=GatewayStatus)

    async def _post(self, listen: str, verb: str, body: Any, *, timeout_s: float) -> bytes:
        record = self._processes.get(gateway_name(listen))
        if record is None:
            raise FleetError("E808", f"no gateway runs on {listen}", host=self._config.host)
        try:
            async with _client(record.socket, timeout_s) as client:
                response = await client.post(f"/control/{verb}", content=msgspec.msgpack.encode(body))
        except (httpx.HTTPError, OSError) as error:
            why = str(error) or type(error).__name__
            raise FleetError(
                "E808", f"the gateway on {listen} failed at {verb}: {why}", host=self._config.host
            ) from error
        if response.status_code >= 400:
            raise FleetError.from_detail(_detail_of(response, verb), host=self._config.host)
        return response.content


def gateway_name(listen: str) -> str:
    return "gateway-" + listen.replace(":", "-").replace("[", "").replace("]", "")


def _client(socket: str, timeout_s: float) -> httpx.AsyncClient:
    # no TLS on a unix socket: unless told so, httpx parses all of the system's CAs for every client (20 ms of CPU)
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=socket, verify=False), base_url="http://gateway", timeout=timeout_s
    )


def _detail_of(response: httpx.Response, verb: str) -> ErrorDetail:
    try:
        return msgspec.msgpack.decode(response.content, type=ErrorDetail)
    except msgspec.DecodeError:
        return ErrorDetail(
            code="E808", message=f"gateway answered {response.status_code} to {verb}: {response.text[:200]}"
        )
