"""The gateway: deployments by name, what its supervisor asks of it, and what it reports of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from datetime import datetime
from pathlib import Path

import httpx
import msgspec

from agent.api.backend import RETRY_AFTER_S, Backend, Replica
from agent.api.canary import check_backend
from agent.api.deployment import Deployment, Face
from agent.api.in_flight import end_request, list_requests
from agent.api.refusal import Refusal
from agent.api.serving_files import load_serving_files
from agent.api.tls import client_context
from agent.errors import ErrorDetail, FleetError
from agent.serving.chat import ChatTemplate
from agent.serving.request import Request
from agent.serving.tokens import ModelTokens
from agent.wire.gateway import (
    AttachBackend,
    BackendReport,
    BackendStatus,
    CancelRequest,
    CheckReport,
    GatewayConfig,
    GatewayStatus,
    RequestReport,
    RequestView,
)

log = logging.getLogger(__name__)

RECOVERY_WAIT_S = 30.0
"""How long requests wait for a generation that replaces a broken one."""
REPORT_SETTLE_S = 0.05
"""A dead rank's neighbours may be heard before it: a moment's patience names the right one."""
REPORT_DELAYS_S = (0.0, 0.2, 1.0, 3.0)
REPORT_TIMEOUT_S = 5.0


class Gateway:
    """All deployments of one gateway process. `tasks` must live as long as the gateway."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        listen: str,
        tasks: asyncio.TaskGroup,
        recovery_wait_s: float = RECOVERY_WAIT_S,
    ) -> None:
        self.config = config
        self._listen = listen
        self._tasks = tasks
        self._recovery_wait_s = recovery_wait_s
        self._deployments: dict[str, Deployment] = {}
        self._stopping: ErrorDetail | None = None

    # --- for clients ---------------------------------------------------------------------------------

    def faces(self) -> tuple[Face, ...]:
        """What can be asked for, by name."""
        known = [each for _, each in sorted(self._deployments.items()) if each.is_known]
        return tuple(each.face for each in known if each.face is not None)

    def find(self, model: str) -> Face:
        """By name, with or without `:latest`. Raises Refusal 404."""
        deployment = self._deployments.get(model) or self._deployments.get(model.removesuffix(":latest"))
        if deployment is None or not deployment.is_known or deployment.face is None:
            served = ", ".join(face.name for face in self.faces()) or "none"
            raise Refusal(
                404, f"model '{model}' not found, served here: {served}", param="model", code="model_not_found"
            )
        return deployment.face

    def submit(self, face: Face, request: Request) -> None:
        """Raises Refusal 503 when there is no room or we are stopping."""
        if self._stopping is not None:
            raise Refusal(503, self._stopping.message, code="shutting_down", retry_after_s=RETRY_AFTER_S)
        deployment = self._deployments.get(face.name)
        if deployment is None:
            raise Refusal(404, f"model '{face.name}' was taken down", param="model", code="model_not_found")
        deployment.submit(request)

    def cancel(self, face: Face, request: Request) -> None:
        deployment = self._deployments.get(face.name)
        if deployment is not None:
            deployment.cancel(request)

    # --- for the supervisor --------------------------------------------------------------------------

    async def attach(self, attach: AttachBackend) -> BackendStatus:
        """Connect to a generation. The same one again is well, an older one is refused. Raises FleetError."""
        deployment = self._deployments.get(attach.deployment)
        if deployment is not None:
            existing = deployment.backends.get(attach.generation)
            if existing is not None and existing.state != "broken":
                return existing.status()
            if deployment.active is not None and deployment.active.generation > attach.generation:
                raise FleetError(
                    "E410",
                    f"{attach.deployment} generation {attach.generation} is older than "
                    f"the active {deployment.active.generation}",
                    host=self.config.host,
                )
        backend = await self._open(attach)
        if self._stopping is not None:
            backend.close(self._stopping)
            raise FleetError.from_detail(self._stopping)
        # A concurrent detach may have dropped the deployment while we connected.
        deployment = self._deployments.setdefault(
            attach.deployment, Deployment(attach.deployment, wait_s=self._recovery_wait_s)
        )
        deployment.detach(attach.generation)
        deployment.add(backend)
        self._tasks.create_task(self._run(backend))
        log.info("backend attached", extra={"deployment": attach.deployment, "generation": attach.generation})
        return backend.status()

    async def check(self, deployment: str, generation: int) -> CheckReport:
        """Run the canary. Raises FleetError E812 for a backend that is not attached."""
        return await check_backend(self._backend(deployment, generation))

    def activate(self, deployment: str, generation: int) -> BackendStatus:
        backend = self._backend(deployment, generation)
        self._deployments[deployment].activate(generation)
        log.info("backend active", extra={"deployment": deployment, "generation": generation})
        return backend.status()

    async def retire(self, deployment: str, generation: int, *, drain_s: float) -> None:
        if deployment in self._deployments:
            await self._deployments[deployment].retire(generation, drain_s=drain_s)
            self._forget_if_empty(deployment)

    def detach(self, deployment: str, generation: int) -> None:
        if deployment in self._deployments:
            self._deployments[deployment].detach(generation)
            self._forget_if_empty(deployment)

    def requests(self, deployment: str) -> RequestReport:
        """What is in flight. Raises FleetError E812 for a deployment that this gateway does not serve."""
        return list_requests(self._deployment(deployment), now_s=time.monotonic())

    def end_request(self, order: CancelRequest) -> RequestView:
        """Cancel one request for an operator: its client gets an error. Raises FleetError E125, E812."""
        ended = end_request(self._deployment(order.deployment), order, now_s=time.monotonic())
        log.info(
            "request cancelled",
            extra={"deployment": order.deployment, "request": ended.request_id, "by": order.by},
        )
        return ended

    def status(self) -> GatewayStatus:
        backends = [
            backend.status()
            for _, deployment in sorted(self._deployments.items())
            for _, backend in sorted(deployment.backends.items())
        ]
        return GatewayStatus(pid=os.getpid(), listen=self._listen, backends=tuple(backends))

    def stop(self) -> None:
        """Every request ends with an error, and no new one is taken."""
        self._stopping = ErrorDetail(code="E817", message="the gateway is stopping", host=self.config.host)
        for deployment in self._deployments.values():
            deployment.close(self._stopping)
        self._deployments.clear()

    # --- inside --------------------------------------------------------------------------------------

    def _deployment(self, name: str) -> Deployment:
        if name not in self._deployments:
            raise FleetError("E812", f"{name} is not served by this gateway", host=self.config.host)
        return self._deployments[name]

    def _backend(self, deployment: str, generation: int) -> Backend:
        backend = None
        if deployment in self._deployments:
            backend = self._deployments[deployment].backends.get(generation)
        if backend is None:
            raise FleetError(
                "E812",
                f"{deployment} generation {generation} is not attached to this gateway",
                host=self.config.host,
            )
        return backend

    def _forget_if_empty(self, name: str) -> None:
        deployment = self._deployments.get(name)
        if deployment is not None and deployment.is_empty:
            del self._deployments[name]

    async def _open(self, attach: AttachBackend) -> Backend:
        tokens, chat = await asyncio.to_thread(_load_serving_files, attach)
        # Read anew each time: leaves are rotated under us.
        tls = client_context(self.config.tls)
        backend = Backend(attach, tokens=tokens, chat=chat, on_broken=self._on_broken)
        await backend.open(tls=tls, cluster=self.config.cluster, gateway=self.config.host)
        return backend

    async def _run(self, backend: Backend) -> None:
        try:
            await backend.run()
        # A bug in one backend must not take the other deployments down: it is logged whole and ends here.
        except Exception as error:
            log.exception("backend failed", extra={"deployment": backend.deployment})
            backend.state = "broken"
            backend.error = ErrorDetail(code="E901", message=f"gateway: {error!r}", host=self.config.host)
            backend.close(backend.error)

    def _on_broken(self, backend: Backend, replica: Replica, num_failed: int) -> None:
        deployment = self._deployments.get(backend.deployment)
        if deployment is not None and deployment.active is backend and not backend.is_usable:
            deployment.shelter(backend)
        self._tasks.create_task(self._report(backend, replica, num_failed))

    async def _report(self, backend: Backend, replica: Replica, num_failed: int) -> None:
        """Tell the agent who broke. It may be dead: then its next start asks for our status."""
        await asyncio.sleep(REPORT_SETTLE_S)
        blame = replica.blame
        assert blame is not None, "only broken replicas are reported"
        report = BackendReport(
            deployment=backend.deployment,
            generation=backend.generation,
            rank_id=blame.endpoint.rank_id,
            host=blame.endpoint.host,
            error=blame.error,
            failed_streams=num_failed,
        )
        body = msgspec.msgpack.encode(report)
        for delay_s in REPORT_DELAYS_S:
            await asyncio.sleep(delay_s)
            try:
                async with _agent_client(self.config.agent_socket) as client:
                    (await client.post("/v1/report", content=body, headers=_MSGPACK)).raise_for_status()
            except (httpx.HTTPError, OSError) as error:
                log.info("agent does not take the report", extra={"error": repr(error)})
            else:
                return


_MSGPACK = {"content-type": "application/msgpack"}


def _agent_client(socket: str) -> httpx.AsyncClient:
    # no TLS on a unix socket: unless told so, httpx parses all of the system's CAs for every client (20 ms of CPU)
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=socket, verify=False),
        base_url="http://agent",
        timeout=REPORT_TIMEOUT_S,
    )


def _load_serving_files(attach: AttachBackend) -> tuple[ModelTokens, ChatTemplate]:
    return load_serving_files(
        Path(attach.model_dir),
        eos_token_ids=attach.model.eos_token_ids,
        now=lambda: datetime.now().astimezone(),
    )
