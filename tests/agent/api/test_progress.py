"""How streams of progress, uploads and bugs look from outside: the app over a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator
from typing import cast

import httpx
import msgspec
import pytest

from agent.api.control import Control, build_app, status_of
from agent.api.planes import serve_control
from agent.errors import ErrorDetail, FleetError
from agent.facts.families import FAMILIES
from agent.facts.model import ModelSpec, RopeSpec
from agent.journal import Journal
from agent.telemetry.history import SampleHistory
from agent.wire.agent import ApplyEvent, ApplyRequest, DestroyRequest, Done, Event, UploadReply
from agent.wire.gateway import BackendReport
from tests.agent.daemon import frames, short_directory, wait_until

SPEC = ModelSpec(
    name="tiny",
    family=FAMILIES[0],
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    vocab_size=256,
    max_context=512,
    rms_norm_eps=1e-5,
    rope=RopeSpec(theta=10_000.0),
    tie_word_embeddings=False,
    dtype="float32",
    num_parameters=100_000,
)
LOST = FleetError("E801", "rank r0s0t0 ended", hint="see its log", host="beta")


class ScriptedControl:
    """Plays what the supervisor would: each method does what its test is about."""

    def __init__(self) -> None:
        self.received = b""
        self.destroyed: list[str] = []
        self.destroy_events: tuple[ApplyEvent, ...] = ()

    async def apply(self, request: ApplyRequest) -> AsyncIterator[ApplyEvent]:
        if request.expected_generation == 9:
            raise FleetError("E401", "generation 9 is not 10", host="alpha")
        yield ApplyEvent(phase="prepare", state="finished", generation=10)
        yield ApplyEvent(phase="start", state="started", generation=10)
        if request.expected_generation == 8:
            raise LOST
        yield ApplyEvent(phase="done", state="finished", generation=10)

    async def destroy(self, request: DestroyRequest) -> AsyncIterator[ApplyEvent]:
        self.destroyed.append(request.deployment)
        for event in self.destroy_events:
            yield event

    async def upload(self, digest: str, file: str, offset: int, chunks: AsyncIterator[bytes]) -> UploadReply:
        sha256 = hashlib.sha256()
        async for chunk in chunks:
            sha256.update(chunk)
            self.received += chunk
        assert (digest, file) == ("d1", "sub/model.safetensors")
        return UploadReply(received=offset + len(self.received), is_complete=True)

    async def report(self, report: BackendReport) -> Done:
        raise RuntimeError(f"bug with {report.rank_id}")


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[ScriptedControl, Journal, httpx.AsyncClient]]:
    with short_directory() as directory:
        control = ScriptedControl()
        journal = Journal(directory / "journal.sqlite", host="alpha")
        app = build_app(cast(Control, control), history=SampleHistory(), journal=journal)
        socket = directory / "run" / "a.sock"
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            server = group.create_task(serve_control(app, socket))
            await asyncio.to_thread(wait_until, socket.is_socket)
            transport = httpx.AsyncHTTPTransport(uds=str(socket))
            async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
                yield control, journal, client
            server.cancel()
        journal.close()


def apply_request(expected_generation: int) -> bytes:
    return msgspec.msgpack.encode(
        ApplyRequest(
            plan_toml="",
            plan_hash="h",
            spec=SPEC,
            members=(),
            expected_generation=expected_generation,
            holder="me",
        )
    )


async def test_progress_is_streamed_to_its_end() -> None:
    async with served() as (_, _, client):
        response = await client.post("/v1/apply", content=apply_request(0))
    assert response.status_code == 200
    assert [(event.phase, event.state) for event in frames(response.content, ApplyEvent)] == [
        ("prepare", "finished"),
        ("start", "started"),
        ("done", "finished"),
    ]


async def test_a_refusal_before_the_first_step_is_an_error_status() -> None:
    async with served() as (_, _, client):
        response = await client.post("/v1/apply", content=apply_request(9))
    assert response.status_code == 409
    detail = msgspec.msgpack.decode(response.content, type=ErrorDetail)
    assert (detail.code, detail.host) == ("E401", "alpha")


async def test_a_failure_on_the_way_is_the_last_event() -> None:
    async with served() as (_, _, client):
        response = await client.post("/v1/apply", content=apply_request(8))
    last = frames(response.content, ApplyEvent)[-1]
    assert (last.phase, last.state, last.generation, last.error) == ("start", "failed", 10, LOST.detail)


async def test_progress_without_events_is_an_empty_stream() -> None:
    async with served() as (control, _, client):
        body = msgspec.msgpack.encode(DestroyRequest(deployment="chat", holder="me"))
        response = await client.post("/v1/destroy", content=body)
    assert (response.status_code, response.content, control.destroyed) == (200, b"", ["chat"])


async def test_an_upload_is_streamed_and_its_offset_counts() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(50):
            yield bytes([number]) * 10_000

    async with served() as (control, _, client):
        response = await client.put("/v1/upload/d1/sub/model.safetensors?offset=7", content=chunks())
    assert msgspec.msgpack.decode(response.content, type=UploadReply) == UploadReply(
        received=500_007, is_complete=True
    )
    assert control.received == b"".join(bytes([number]) * 10_000 for number in range(50))


async def test_a_bug_is_an_error_with_a_way_out_and_the_agent_lives_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that other tests have run with its own logging keeps its records to itself from then on.
    for name in ("uvicorn", "uvicorn.error"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    report = BackendReport(
        deployment="chat", generation=1, rank_id="r0s0t0", host="beta", error=LOST.detail, failed_streams=0
    )
    async with served() as (_, _, client):
        response = await client.post("/v1/report", content=msgspec.msgpack.encode(report))
        assert response.status_code == 500
        detail = msgspec.msgpack.decode(response.content, type=ErrorDetail)
        assert detail.code == "E900"
        assert "RuntimeError: bug with r0s0t0" in detail.message
        assert "traceback is in the agent's log" in detail.hint
        assert (await client.get("/v1/events")).status_code == 200
    assert any(record.exc_info for record in caplog.records)


async def test_a_message_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.replies.MAX_BODY_BYTES", 1000)
    async with served() as (_, _, client):
        response = await client.post("/v1/report", content=bytes(2000))
    assert response.status_code == 400
    assert "over the limit of 1000 bytes" in msgspec.msgpack.decode(response.content, type=ErrorDetail).message


async def test_followed_events_arrive_as_they_are_written() -> None:
    async with served() as (_, journal, client):
        journal.append("First")
        kinds = []
        async with client.stream("GET", "/v1/events?after=0&follow=1") as response:
            async for chunk in response.aiter_raw():
                kinds += [event.kind for event in frames(chunk, Event)]
                if len(kinds) < 3:
                    journal.append(f"Event{len(kinds)}")
                else:
                    break
    assert kinds == ["First", "Event1", "Event2"]


async def test_before_the_first_sample_the_agent_says_so() -> None:
    async with served() as (_, _, client):
        response = await client.get("/metrics")
    assert response.status_code == 503


@pytest.mark.parametrize(
    ("code", "status"),
    [("E102", 400), ("E206", 503), ("E301", 500), ("E401", 409), ("E501", 409), ("E601", 422), ("E701", 404)],
)
def test_the_group_of_a_code_decides_its_status(code: str, status: int) -> None:
    assert status_of(code) == status
