"""The agent's own API: what operators ask on the unix socket, and other agents over TLS. Routes: `wire.agent`.

This file turns HTTP into calls of `Control` and back; it decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from agent.api.log_follow import LogFollower
from agent.api.log_tail import read_tail
from agent.api.machine import MachineControl, machine_routes
from agent.api.replies import body as _body
from agent.api.replies import encoded as _encoded
from agent.api.replies import flag as _flag
from agent.api.replies import frames as _frames
from agent.api.replies import number as _number
from agent.errors import ErrorDetail, FleetError
from agent.facts.cluster import HostFacts
from agent.facts.probe import HostProbe, ProbeRecord
from agent.facts.sample import HostSample
from agent.journal import Journal
from agent.planner.learning.records import Lessons
from agent.telemetry.history import SampleHistory
from agent.wire.accuracy import AccuracyReport, CheckModel
from agent.wire.agent import (
    AbortRequest,
    ApplyEvent,
    ApplyRequest,
    DeploymentRecord,
    DeploymentStatus,
    DestroyRequest,
    Done,
    FaultReport,
    Handshake,
    Heartbeat,
    Instruction,
    InstructionReply,
    ModelHolding,
    ModelManifest,
    ModelQuery,
    RangeRequest,
    RunReport,
    StoreReply,
    StoreRequest,
    UploadReply,
)
from agent.wire.framing import encode_frame
from agent.wire.gateway import BackendReport, CancelRequest, RequestReport, RequestView
from agent.wire.history import GenerationHistory
from agent.wire.probe import LinkReport, ProbeDevices, ProbeLinks, ProbeModel

MAX_EVENTS = 10_000
MAX_TAIL_LINES = 10_000

T = TypeVar("T")
Answer = Callable[[Request], Awaitable[Response]]


class Control(MachineControl, Protocol):
    """What the routes need of the supervisor. Trouble is raised as FleetError."""

    def handshake(self) -> Handshake: ...
    async def facts(self) -> HostFacts: ...
    async def holdings(self) -> tuple[ModelHolding, ...]: ...
    async def manifest(self, query: ModelQuery) -> ModelManifest: ...
    async def check(self, request: CheckModel) -> AccuracyReport: ...
    async def probes(self) -> ProbeRecord:
        """What was measured before; nothing is measured for it."""
        ...

    async def probe(self, request: ProbeDevices) -> HostProbe: ...
    async def probe_model(self, request: ProbeModel) -> HostProbe: ...
    async def probe_links(self, order: ProbeLinks) -> LinkReport: ...
    async def ranges(self, request: RangeRequest) -> tuple[str, AsyncIterator[bytes]]:
        """SHA-256 (hex) of the bytes, and the bytes."""
        ...

    def deployments(self) -> tuple[DeploymentRecord, ...]: ...
    async def deployment(self, name: str) -> DeploymentStatus: ...
    async def requests(self, deployment: str) -> RequestReport: ...
    async def cancel_request(self, order: CancelRequest) -> RequestView: ...
    async def faults(self) -> FaultReport: ...
    def lessons(self) -> Lessons: ...

    def runs(self) -> RunReport: ...
    def history(self) -> GenerationHistory: ...
    def apply(self, request: ApplyRequest) -> AsyncIterator[ApplyEvent]:
        """Progress. The apply itself goes on when its reader goes away."""
        ...

    async def abort(self, request: AbortRequest) -> Done: ...
    def destroy(self, request: DestroyRequest) -> AsyncIterator[ApplyEvent]: ...
    async def instruct(self, instruction: Instruction) -> InstructionReply: ...
    async def store(self, request: StoreRequest) -> StoreReply: ...
    async def report(self, report: BackendReport) -> Done: ...
    def heartbeat(self, controller: str) -> Heartbeat: ...
    async def upload(self, digest: str, file: str, offset: int, chunks: AsyncIterator[bytes]) -> UploadReply: ...
    def log_path(self, name: str) -> Path: ...
    def log_names(self) -> tuple[str, ...]: ...


def build_app(
    control: Control, *, history: SampleHistory, journal: Journal, only: tuple[str, ...] | None = None
) -> Starlette:
    """The app of one plane; `only` restricts it to these paths (`CLUSTER_ROUTES` on the cluster plane)."""
    routes = [
        *_host_routes(control, history, journal),
        *_model_routes(control),
        *_deployment_routes(control),
        *_member_routes(control),
    ]
    return Starlette(
        routes=[route for route in routes if only is None or route.path in only],
        exception_handlers={
            FleetError: _answer_fleet_error,
            HTTPException: _answer_http_exception,
            ClientDisconnect: _answer_disconnect,
            Exception: _answer_bug,
        },
    )


# --- routes -------------------------------------------------------------------------------------------


def _host_routes(control: Control, history: SampleHistory, journal: Journal) -> list[Route]:
    async def handshake(request: Request) -> Response:
        return _encoded(request, control.handshake())

    async def facts(request: Request) -> Response:
        return _encoded(request, await control.facts())

    async def probes(request: Request) -> Response:
        return _encoded(request, await control.probes())

    async def probe(request: Request) -> Response:
        return _encoded(request, await control.probe(await _body(request, ProbeDevices)))

    async def probe_model(request: Request) -> Response:
        return _encoded(request, await control.probe_model(await _body(request, ProbeModel)))

    async def probe_links(request: Request) -> Response:
        return _encoded(request, await control.probe_links(await _body(request, ProbeLinks)))

    async def samples(request: Request) -> Response:
        span_s = _number(request, "history_s", default=0)
        since_s = time.time() - span_s
        if _flag(request, "follow"):
            return _frames(history.follow(since_s))
        if span_s == 0:
            return _frames(_latest(history))
        return _frames(_each(history.since(since_s)))

    async def events(request: Request) -> Response:
        limit = _number(request, "limit", default=MAX_EVENTS, most=MAX_EVENTS)
        kinds = tuple(kind for kind in request.query_params.get("kinds", "").split(",") if kind)
        if kinds and ("after" in request.query_params or _flag(request, "follow")):
            raise FleetError(
                "E102", "`kinds` is for the newest events alone", hint="leave out `after` and `follow`, or `kinds`"
            )
        if kinds:
            found = journal.read_kinds(kinds, limit)
        elif "after" in request.query_params:
            found = journal.read(_number(request, "after", default=0), limit)
        else:
            found = journal.read_last(limit)
        frames = [encode_frame(event) for event in found]
        if not _flag(request, "follow"):
            return _frames(_each(frames))
        after = found[-1].event_id if found else _number(request, "after", default=journal.last_id)
        return _frames(_past_then_live(frames, journal, after))

    async def logs(request: Request) -> Response:
        name = request.query_params.get("name", "")
        follows = _flag(request, "follow")
        is_framed = follows or _flag(request, "frames")
        if not name and not is_framed:
            return PlainTextResponse("\n".join(control.log_names()))
        if name and name not in control.log_names():
            raise FleetError(
                "E105", f"no log named `{name}` here", hint=f"there are: {', '.join(control.log_names())}"
            )
        tail = _number(request, "tail", default=200, most=MAX_TAIL_LINES)
        if is_framed:
            return _frames(_log_frames(control, name, tail, follows=follows))
        return PlainTextResponse(read_tail(control.log_path(name), tail))

    async def metrics(_request: Request) -> Response:
        from agent.api.metrics import CONTENT_TYPE, render_host_metrics

        return Response(render_host_metrics(_sampled(history)), media_type=CONTENT_TYPE)

    return [
        Route("/v1/handshake", handshake),
        Route("/v1/facts", facts),
        Route("/v1/probes", probes),
        Route("/v1/probe", probe, methods=["POST"]),
        Route("/v1/probe/model", probe_model, methods=["POST"]),
        Route("/v1/probe/links", probe_links, methods=["POST"]),
        Route("/v1/samples", samples),
        Route("/v1/events", events),
        Route("/v1/logs", logs),
        Route("/metrics", metrics),
        *machine_routes(control, history),
    ]


def _model_routes(control: Control) -> list[Route]:
    async def models(request: Request) -> Response:
        return _encoded(request, await control.holdings())

    async def manifest(request: Request) -> Response:
        return _encoded(request, await control.manifest(await _body(request, ModelQuery)))

    async def check(request: Request) -> Response:
        return _encoded(request, await control.check(await _body(request, CheckModel)))

    async def ranges(request: Request) -> Response:
        sha256, chunks = await control.ranges(await _body(request, RangeRequest))
        return StreamingResponse(chunks, media_type="application/octet-stream", headers={"x-sha256": sha256})

    async def upload(request: Request) -> Response:
        digest, file = request.path_params["digest"], request.path_params["file"]
        offset = _number(request, "offset", default=0)
        return _encoded(request, await control.upload(digest, file, offset, request.stream()))

    return [
        Route("/v1/models", models),
        Route("/v1/manifest", manifest, methods=["POST"]),
        Route("/v1/check", check, methods=["POST"]),
        Route("/v1/ranges", ranges, methods=["POST"]),
        Route("/v1/upload/{digest}/{file:path}", upload, methods=["PUT"]),
    ]


def _deployment_routes(control: Control) -> list[Route]:
    async def deployments(request: Request) -> Response:
        return _encoded(request, control.deployments())

    async def deployment(request: Request) -> Response:
        return _encoded(request, await control.deployment(request.path_params["name"]))

    async def requests(request: Request) -> Response:
        return _encoded(request, await control.requests(request.path_params["name"]))

    async def cancel_request(request: Request) -> Response:
        return _encoded(request, await control.cancel_request(await _body(request, CancelRequest)))

    async def faults(request: Request) -> Response:
        return _encoded(request, await control.faults())

    async def learning(request: Request) -> Response:
        return _encoded(request, control.lessons())

    async def runs(request: Request) -> Response:
        return _encoded(request, control.runs())

    async def generations(request: Request) -> Response:
        return _encoded(request, control.history())

    async def apply(request: Request) -> Response:
        return await _progress(control.apply(await _body(request, ApplyRequest)))

    async def abort(request: Request) -> Response:
        return _encoded(request, await control.abort(await _body(request, AbortRequest)))

    async def destroy(request: Request) -> Response:
        return await _progress(control.destroy(await _body(request, DestroyRequest)))

    return [
        Route("/v1/deployments", deployments),
        Route("/v1/deployments/{name}", deployment),
        Route("/v1/requests/cancel", cancel_request, methods=["POST"]),
        Route("/v1/requests/{name}", requests),
        Route("/v1/faults", faults),
        Route("/v1/learning", learning),
        Route("/v1/runs", runs),
        Route("/v1/history", generations),
        Route("/v1/apply", apply, methods=["POST"]),
        Route("/v1/abort", abort, methods=["POST"]),
        Route("/v1/destroy", destroy, methods=["POST"]),
    ]


def _member_routes(control: Control) -> list[Route]:
    async def instruct(request: Request) -> Response:
        return _encoded(request, await control.instruct(await _body(request, Instruction)))

    async def store(request: Request) -> Response:
        return _encoded(request, await control.store(await _body(request, StoreRequest)))

    async def report(request: Request) -> Response:
        return _encoded(request, await control.report(await _body(request, BackendReport)))

    async def heartbeat(request: Request) -> Response:
        return _encoded(request, control.heartbeat(request.query_params.get("controller", "")))

    return [
        Route("/v1/instruct", instruct, methods=["POST"]),
        Route("/v1/store", store, methods=["POST"]),
        Route("/v1/report", report, methods=["POST"]),
        Route("/v1/heartbeat", heartbeat),
    ]


# --- streams ------------------------------------------------------------------------------------------


async def _progress(events: AsyncIterator[ApplyEvent]) -> Response:
    """A stream whose first event has come, so that a refusal is still an error status."""
    try:
        first = await anext(events)
    except StopAsyncIteration:
        return _frames(_each([]))
    return _frames(_rest_of_progress(first, events))


async def _rest_of_progress(first: ApplyEvent, events: AsyncIterator[ApplyEvent]) -> AsyncIterator[bytes]:
    last = first
    yield encode_frame(first)
    try:
        async for event in events:
            last = event
            yield encode_frame(event)
    except FleetError as error:
        yield encode_frame(
            ApplyEvent(
                phase=last.phase,
                state="failed",
                host=error.host,
                message=error.message,
                at_s=time.time(),
                generation=last.generation,
                error=error.detail,
            )
        )


async def _each(frames: list[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


async def _latest(history: SampleHistory) -> AsyncIterator[bytes]:
    yield encode_frame(_sampled(history))


async def _past_then_live(frames: list[bytes], journal: Journal, after: int) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame
    async for event in journal.follow(after):
        yield encode_frame(event)


async def _log_frames(control: Control, name: str, tail: int, *, follows: bool) -> AsyncIterator[bytes]:
    """One log, or with an empty name every log that there is or comes; their last lines, then what is added."""
    follower = LogFollower(
        lambda: [(each, control.log_path(each)) for each in control.log_names() if name in ("", each)], tail=tail
    )
    async for lines in follower.follow(is_once=not follows):
        yield encode_frame(lines)


def _sampled(history: SampleHistory) -> HostSample:
    if history.latest is None:
        raise FleetError("E208", "no sample was taken yet", hint="ask again in a second")
    return history.latest


# --- errors -------------------------------------------------------------------------------------------


def status_of(code: str) -> int:
    """HTTP status of a FleetError's code."""
    match code[:2]:
        case "E1":
            return 400
        case "E2":
            return 503
        case "E4" | "E5":
            return 409
        case "E6":
            return 422
        case "E7":
            return 404
        case _:
            return 500


async def _answer_fleet_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    return _encoded(request, error.detail, status=status_of(error.code))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _encoded(request, ErrorDetail(code="E102", message=message), status=error.status_code)


async def _answer_disconnect(_request: Request, _error: Exception) -> Response:
    # Nobody reads it: the request's own connection is gone.
    return Response(status_code=400)


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this, and uvicorn logs it with its traceback."""
    detail = ErrorDetail(
        code="E900",
        message=f"{request.url.path} failed inside the agent: {type(error).__name__}: {error}",
        hint="the traceback is in the agent's log",
    )
    return _encoded(request, detail, status=500)
