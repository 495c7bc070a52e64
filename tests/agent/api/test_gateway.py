"""The gateway under trouble: lost ranks, lost clients, full queues, new generations, its own end."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import json
import os
import queue
import signal
import socket
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import ollama
import openai
import pytest

from agent.api.canary import PROMPT
from agent.api.gateway import Gateway
from agent.api.generation import Draft, Generation
from agent.api.refusal import Refusal
from agent.errors import FleetError
from agent.planner.plan import Serving
from agent.serving.request import Failed, Finished, TextEmitted
from agent.wire.gateway import AttachBackend, BackendReport, GatewayConfig
from agent.wire.rank import SamplingParams
from tests.agent.api.rig import CLUSTER, HOST, MODEL, SERVING, Rig, greedy, issue_leaf, text_of, wait_until
from tests.agent.serving.tokenizer import BOS, small_tokenizer

SLOW_S = 0.03
"""A step that leaves time to break something in the middle of a stream."""
GREEDY = {"temperature": 0, "num_predict": 100}
CHAT: Any = [{"role": "user", "content": "Say something."}]


def raw_prompt(text: str) -> list[int]:
    return [BOS, *small_tokenizer().encode(text, add_special_tokens=False).ids]


def openai_client(rig: Rig, *, api_key: str = "unused", max_retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{rig.base_url}/v1", api_key=api_key, max_retries=max_retries)


# --- many at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_stages", "num_replicas"), [(2, 1), (3, 2)])
def test_thirty_two_clients_get_what_each_would_get_alone(rig: Rig, num_stages: int, num_replicas: int) -> None:
    rig.serve(num_stages=num_stages, num_replicas=num_replicas, step_s=0.001)
    texts = [f"Client number {index} asks for " + "more " * (index % 7) for index in range(32)]

    def ask(text: str) -> tuple[str, str, int, int]:
        with ollama.Client(rig.base_url) as client:
            parts = list(
                client.generate("demo", text, raw=True, options={"temperature": 0, "num_predict": 24}, stream=True)
            )
        last = parts[-1]
        answer = "".join(part.response or "" for part in parts)
        return answer, str(last.done_reason), last.prompt_eval_count or 0, last.eval_count or 0

    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(ask, texts))
    for text, (answer, reason, _, _) in zip(texts, answers, strict=True):
        assert answer == text_of(greedy(raw_prompt(text), 24))
        assert reason == "length"
    status = rig.backend()
    assert status.finished == 32
    assert status.prompt_tokens == sum(answer[2] for answer in answers)
    assert status.generated_tokens == sum(answer[3] for answer in answers)
    assert (status.running, status.queued, status.failed, status.cancelled) == (0, 0, 0, 0)
    assert status.slots == SERVING.batch * num_replicas
    assert status.tokens_per_s > 0
    assert 0 < status.ttft_s_p50 <= status.ttft_s_p95
    assert 0 < status.time_per_token_s_p50 <= status.time_per_token_s_p95


def test_replicas_share_the_load(rig: Rig) -> None:
    rig.serve(num_stages=1, num_replicas=2, step_s=SLOW_S)
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda _: complete(rig, max_tokens=8), range(4)))
    assert [len(rig.sent_params(f"demo-r{replica}s0t0-g1")) for replica in range(2)] == [2, 2]


def complete(rig: Rig, *, max_tokens: int, prompt: str = "x", model: str = "demo") -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    return httpx.post(f"{rig.base_url}/v1/completions", json=body, timeout=20)


def test_a_full_queue_is_a_503_that_says_when_to_come_back(rig: Rig) -> None:
    serving = msgspec.structs.replace(SERVING, batch=1, queue=1)
    rig.serve(num_stages=1, step_s=SLOW_S, serving=serving)
    with ThreadPoolExecutor(2) as clients:
        taken = [clients.submit(complete, rig, max_tokens=40) for _ in range(2)]
        wait_until(lambda: (rig.backend().running, rig.backend().queued) == (1, 1), "one runs, one waits")
        refused = complete(rig, max_tokens=1)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "server_busy"
        with ollama.Client(rig.base_url) as client, pytest.raises(ollama.ResponseError, match="busy") as busy:
            client.generate("demo", "x")
        assert busy.value.status_code == 503
        assert [each.result().status_code for each in taken] == [200, 200]


# --- clients that leave -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"prompt": "x", "stream": True}),
        ("/api/chat", {"messages": CHAT, "stream": False}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 200, "stream": True}),
        ("/v1/chat/completions", {"messages": CHAT, "stream": False}),
    ],
)
def test_a_client_that_leaves_frees_its_slot(rig: Rig, path: str, body: dict[str, Any]) -> None:
    rig.serve(step_s=SLOW_S, serving=msgspec.structs.replace(SERVING, batch=1))
    connection = post(rig, path, {"model": "demo", **body})
    wait_until(lambda: rig.backend().generated_tokens > 2, "it generates")
    connection.close()
    status = wait_until(lambda: (status := rig.backend()).running == 0 and status, "its slot is free")
    assert (status.cancelled, status.finished) == (1, 0)
    assert complete(rig, max_tokens=2).status_code == 200


def post(rig: Rig, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
    """Send a request whose answer nobody reads."""
    address, port = rig.base_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(address, int(port))
    connection.request("POST", path, body=json.dumps(body))
    return connection


def test_a_client_that_leaves_the_queue_is_forgotten(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S, serving=msgspec.structs.replace(SERVING, batch=1))
    with ThreadPoolExecutor(1) as clients:
        running = clients.submit(complete, rig, max_tokens=60)
        wait_until(lambda: rig.backend().running == 1, "one runs")
        connection = post(rig, "/api/generate", {"model": "demo", "prompt": "y"})
        wait_until(lambda: rig.backend().queued == 1, "another waits")
        connection.close()
        wait_until(lambda: rig.backend().queued == 0, "nobody waits")
        assert running.result().status_code == 200
    status = rig.backend()
    assert (status.finished, status.cancelled) == (1, 1)


# --- ranks that die -----------------------------------------------------------------------------------


def read_ollama(rig: Rig, started: queue.Queue[str]) -> str:
    """The error that ends an Ollama stream; tells when the first words came."""
    with ollama.Client(rig.base_url) as client:
        try:
            for part in client.generate("demo", "x", options=GREEDY, stream=True):
                started.put(part.response or "")
        except ollama.ResponseError as error:
            return error.error
    return "the stream ended as if all were well"


def read_openai(rig: Rig, started: queue.Queue[str]) -> str:
    with openai_client(rig) as client:
        stream = client.chat.completions.create(model="demo", messages=CHAT, stream=True, max_tokens=100)
        with stream:
            try:
                for chunk in stream:
                    if chunk.choices[0].delta.content:
                        started.put(chunk.choices[0].delta.content)
            except openai.APIError as error:
                return error.message
    return "the stream ended as if all were well"


def read_whole(rig: Rig) -> httpx.Response:
    body = {"model": "demo", "prompt": "x", "options": GREEDY, "stream": False}
    return httpx.post(f"{rig.base_url}/api/generate", json=body, timeout=20)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_every_stream_with_an_error_at_once(rig: Rig, victim: int) -> None:
    ranks = rig.serve(step_s=SLOW_S)
    started_ollama, started_openai = queue.Queue[str](), queue.Queue[str]()
    with ThreadPoolExecutor(3) as clients:
        streams = [
            clients.submit(read_ollama, rig, started_ollama),
            clients.submit(read_openai, rig, started_openai),
        ]
        whole = clients.submit(read_whole, rig)
        started_ollama.get(timeout=10)
        started_openai.get(timeout=10)
        wait_until(lambda: rig.backend().running == 3, "all three run")
        began = time.monotonic()
        ranks[0][victim].kill()
        messages = [stream.result(timeout=5) for stream in streams]
        answer = whole.result(timeout=5)
        assert time.monotonic() - began < 3
    for message in messages:
        assert f"rank r0s{victim}t0 closed its step channel" in message
        assert HOST in message
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    status = rig.backend()
    assert (status.state, status.failed, status.running) == ("broken", 3, 0)
    assert status.error is not None
    assert status.error.code == "E810"


def test_a_broken_stream_says_so_in_its_protocols_form(rig: Rig) -> None:
    ranks = rig.serve(step_s=SLOW_S)

    def lines(path: str, body: dict[str, Any], first: threading.Event) -> list[str]:
        read = []
        asked = {"model": "demo", "messages": CHAT, "stream": True, **body}
        with httpx.stream("POST", f"{rig.base_url}{path}", json=asked, timeout=20) as answer:
            for line in answer.iter_lines():
                read.append(line)
                first.set()
        return [line for line in read if line]

    ndjson_began, sse_began = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as clients:
        ndjson = clients.submit(lines, "/api/chat", {}, ndjson_began)
        sse = clients.submit(lines, "/v1/chat/completions", {}, sse_began)
        assert ndjson_began.wait(timeout=10)
        assert sse_began.wait(timeout=10)
        ranks[0][0].kill()
        last = json.loads(ndjson.result()[-1])
        events = sse.result()
    assert list(last) == ["error"]
    assert events[-1] == "data: [DONE]"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["type"] == "service_unavailable_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_the_other_replica_serves_on(rig: Rig) -> None:
    ranks = rig.serve(num_stages=1, num_replicas=2, step_s=SLOW_S)
    with ThreadPoolExecutor(2) as clients:
        both = [clients.submit(complete, rig, max_tokens=30) for _ in range(2)]
        wait_until(lambda: rig.backend().running == 2, "both replicas run")
        ranks[0][0].kill()
        assert sorted(each.result().status_code for each in both) == [200, 503]
    status = rig.backend()
    assert (status.state, status.failed, status.finished) == ("broken", 1, 1)
    assert complete(rig, max_tokens=2).status_code == 200


class AgentStandIn(http.server.BaseHTTPRequestHandler):
    """Takes reports on the agent's unix socket, as the agent's control plane does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        server: Any = self.server
        server.reports.put((self.path, msgspec.msgpack.decode(body, type=BackendReport)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the test reads the reports."""


@contextmanager
def agent_on(path: Path) -> Iterator[queue.Queue[tuple[str, BackendReport]]]:
    reports = queue.Queue[tuple[str, BackendReport]]()
    with socketserver.UnixStreamServer(str(path), AgentStandIn) as server:
        server.reports = reports  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield reports
        finally:
            server.shutdown()
            thread.join()


def test_the_agent_is_told_who_broke_even_when_it_comes_back_late(rig: Rig) -> None:
    ranks = rig.serve(step_s=SLOW_S)
    with ThreadPoolExecutor(1) as clients:
        lost = clients.submit(complete, rig, max_tokens=100)
        wait_until(lambda: rig.backend().running == 1, "one runs")
        ranks[0][1].kill()
        assert lost.result().status_code == 503
    wait_until(lambda: "agent does not take the report" in rig.log.read_text(), "a report failed")
    with agent_on(rig.directory / "agent.sock") as reports:
        path, report = reports.get(timeout=10)
    assert path == "/v1/report"
    assert (report.deployment, report.generation, report.rank_id, report.host) == ("demo", 1, "r0s1t0", HOST)
    assert report.failed_streams == 1
    assert report.error.code == "E810"


def test_a_rank_that_contradicts_the_protocol_breaks_the_backend(rig: Rig) -> None:
    """The stand-in answers a slice that does not fit its history with StepFailed: here after a foreign step."""
    ranks = rig.serve(num_stages=1, step_s=SLOW_S)
    (rig.directory / "second").mkdir()
    second = Rig(rig.directory / "second")
    second.tls = rig.tls
    try:
        second.start_gateway()
        second.attach(ranks)
        second.tell("activate")
        assert complete(rig, max_tokens=2).status_code == 200
        failed = complete(second, max_tokens=2)
        assert failed.status_code == 503
        assert "step 0 came where" in failed.json()["error"]["message"]
        assert second.backend().state == "broken"
    finally:
        second.close()


# --- generations --------------------------------------------------------------------------------------


def test_a_new_generation_takes_over_while_the_old_one_drains(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S, serving=msgspec.structs.replace(SERVING, batch=1))
    new = rig.stand_ins(generation=2, num_stages=1)
    with ThreadPoolExecutor(3) as clients:
        old = clients.submit(complete, rig, max_tokens=30)
        wait_until(lambda: rig.backend(1).running == 1, "the old one runs")
        queued = clients.submit(complete, rig, max_tokens=3)
        wait_until(lambda: rig.backend(1).queued == 1, "another waits")
        rig.attach(new, generation=2)
        assert rig.check(2).is_ok
        assert rig.backend(2).state == "attached"
        rig.tell("activate", 2)
        assert [rig.backend(generation).state for generation in (1, 2)] == ["draining", "active"]
        # What waited at the old one goes on at the new one at once.
        assert queued.result().json()["system_fingerprint"] == "fp_plan1"
        # An answer's last byte may be read before the request is counted.
        wait_until(lambda: rig.backend(2).finished == 1, "the new one finished it")
        assert complete(rig, max_tokens=3).json()["system_fingerprint"] == "fp_plan2"
        rig.tell("retire", 1, drain_s=20)
        assert old.result().status_code == 200
        assert old.result().json()["usage"]["completion_tokens"] == 30
    assert [each.generation for each in rig.status().backends] == [2]


def test_draining_has_an_end_and_what_is_left_gets_an_error(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)
    started = queue.Queue[str]()
    with ThreadPoolExecutor(1) as clients:
        stream = clients.submit(read_ollama, rig, started)
        started.get(timeout=10)
        rig.tell("retire", 1, drain_s=0.1)
        assert "was taken down" in stream.result(timeout=5)
    assert rig.status().backends == ()
    assert complete(rig, max_tokens=1).status_code == 404


def test_older_generations_and_unknown_ones_are_refused(rig: Rig) -> None:
    rig.serve(generation=5)
    old = rig.stand_ins(generation=4)
    with pytest.raises(FleetError, match="older than the active 5") as stale:
        rig.attach(old, generation=4)
    assert stale.value.code == "E410"
    with pytest.raises(FleetError, match="has generation 4"):
        rig.attach(old, generation=6)
    with pytest.raises(FleetError, match="not attached"):
        rig.tell("activate", 9)
    with pytest.raises(FleetError, match="not attached"):
        rig.check(9)
    rig.tell("detach", 9)
    rig.tell("retire", 9)
    with pytest.raises(FleetError, match="the body is no"):
        rig.control("attach", Serving())


def test_a_rank_that_cannot_be_reached_is_named(rig: Rig) -> None:
    rig.start_gateway()
    [[first, second]] = rig.stand_ins()
    endpoints = (((first.endpoint,), (second.endpoint,)),)
    second.kill()
    with pytest.raises(FleetError, match="rank r0s1t0 at 127") as lost:
        rig.attach_endpoints(endpoints, generation=1, deployment="demo", serving=SERVING, model=MODEL)
    assert (lost.value.code, lost.value.host) == ("E811", HOST)
    assert rig.status().backends == ()


def test_a_rank_must_show_its_own_hosts_certificate(rig: Rig) -> None:
    rig.start_gateway()
    rig.tls = issue_leaf(rig.directory, host="stranger")
    [[rank]] = rig.stand_ins(num_stages=1)
    with pytest.raises(FleetError, match=f"{HOST}.{CLUSTER}.odctl") as refused:
        rig.attach([[rank]])
    assert refused.value.code == "E811"


def test_several_deployments_live_side_by_side(rig: Rig) -> None:
    rig.serve(deployment="one")
    rig.serve(deployment="two")
    names = [model["name"] for model in httpx.get(f"{rig.base_url}/api/tags").json()["models"]]
    assert names == ["one:latest", "two:latest"]
    rig.tell("detach", deployment="one")
    assert complete(rig, max_tokens=1, model="one").status_code == 404
    assert complete(rig, max_tokens=1, model="two").status_code == 200


def test_the_canary_finds_a_rank_that_forgets(rig: Rig) -> None:
    rig.start_gateway()
    rig.attach(rig.stand_ins(is_forgetful=True))
    report = rig.check()
    assert not report.is_ok
    assert "KV cache, positions or links are wrong" in report.reason


def test_the_canary_passes_and_leaves_no_mark_on_the_metrics(rig: Rig) -> None:
    rig.start_gateway()
    rig.attach(rig.stand_ins(num_replicas=2, step_s=0.002))
    report = rig.check()
    assert (report.is_ok, report.reason) == (True, "")
    prompt = raw_prompt(PROMPT)[: SERVING.prefill_chunk - 8]
    assert report.tokens == tuple(greedy(prompt, 8))
    assert report.prompt_tokens == len(prompt)
    assert report.ttft_s > 0.002
    assert report.time_per_token_s > 0.002
    status = rig.backend()
    assert (status.finished, status.generated_tokens, status.prompt_tokens) == (0, 0, 0)
    assert complete(rig, max_tokens=1).status_code == 404


async def test_who_waits_for_a_repair_is_served_by_the_next_generation_or_told_in_time(rig: Rig) -> None:
    """In this process, because the bound of a gateway process is half a minute.

    1. a queue and a late request wait when the only replica breaks; 2. a new generation takes both; 3. it breaks
    too, and nobody comes: the bound ends the wait.
    """
    serving = msgspec.structs.replace(SERVING, batch=1)
    first = await asyncio.to_thread(rig.stand_ins, num_stages=1, step_s=SLOW_S)
    second = await asyncio.to_thread(rig.stand_ins, num_stages=1, generation=2)
    config = GatewayConfig(
        cluster=CLUSTER,
        host=HOST,
        listen="127.0.0.1:0",
        socket=str(rig.socket),
        agent_socket=str(rig.directory / "agent.sock"),
        tls=rig.tls,
    )
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(config, listen="", tasks=tasks, recovery_wait_s=1.5)
        await gateway.attach(attach_of(rig, first, serving, 1))
        gateway.activate("demo", 1)
        running, queued = submit(gateway), submit(gateway)
        await asyncio.to_thread(first[0][0].kill)
        assert isinstance(await outcome(running), Failed)
        late = submit(gateway)
        gateway.detach("demo", 1)
        after_detach = submit(gateway)
        await gateway.attach(attach_of(rig, second, serving, 2))
        gateway.activate("demo", 2)
        for generation in (queued, late, after_detach):
            assert await outcome(generation) == Finished(reason="length")
            assert generation.requests[0].generated == greedy(raw_prompt("wait"), 4)
        await asyncio.to_thread(second[0][0].kill)
        await asyncio.to_thread(wait_until, lambda: gateway.status().backends[0].state == "broken", "it broke")
        ended = await outcome(submit(gateway))
        assert isinstance(ended, Failed)
        assert "was not repaired within" in ended.error.message
        assert ended.retry_after_s is not None
        gateway.detach("demo", 2)
        gateway.stop()
        with pytest.raises(Refusal) as stopping:
            submit_to(gateway, late)
        assert stopping.value.status == 503


def attach_of(rig: Rig, ranks: Any, serving: Serving, generation: int) -> AttachBackend:
    return AttachBackend(
        deployment="demo",
        generation=generation,
        plan_hash="p",
        model=MODEL,
        model_dir=str(rig.model_dir),
        replicas=tuple(tuple((rank.endpoint,) for rank in replica) for replica in ranks),
        serving=serving,
    )


def submit(gateway: Gateway) -> Generation:
    draft = Draft(
        prompt=tuple(raw_prompt("wait")),
        params=SamplingParams(),
        max_tokens=4,
        stop=(),
        arrived_s=time.monotonic(),
    )
    return Generation(gateway, gateway.find("demo"), [draft])


def submit_to(gateway: Gateway, model: Generation) -> None:
    gateway.submit(model.face, *model.requests)


async def outcome(generation: Generation) -> object:
    async with asyncio.timeout(10):
        return [event async for _, event in generation.events() if not isinstance(event, TextEmitted)][-1]


# --- the process itself -------------------------------------------------------------------------------


def test_sigterm_ends_streams_with_an_error_and_the_process_in_time(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)
    assert rig.gateway is not None
    started_ollama, started_openai = queue.Queue[str](), queue.Queue[str]()
    with ThreadPoolExecutor(2) as clients:
        streams = [
            clients.submit(read_ollama, rig, started_ollama),
            clients.submit(read_openai, rig, started_openai),
        ]
        started_ollama.get(timeout=10)
        started_openai.get(timeout=10)
        rig.gateway.send_signal(signal.SIGTERM)
        for stream in streams:
            assert "the gateway is stopping" in stream.result(timeout=5)
    assert rig.gateway.wait(timeout=5) == 0
    assert not rig.socket.exists()
    assert "Traceback" not in rig.log.read_text()


def test_the_gateway_never_loads_torch_and_keeps_its_socket_private(rig: Rig) -> None:
    rig.serve()
    assert complete(rig, max_tokens=1).status_code == 200
    assert rig.gateway is not None
    assert "torch" not in Path(f"/proc/{rig.gateway.pid}/maps").read_text()
    assert stat.S_IMODE(rig.socket.stat().st_mode) == 0o600
    assert rig.status().pid == rig.gateway.pid


def test_the_unix_socket_serves_clients_and_tcp_serves_no_control(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        assert client.get("/api/tags").json()["models"][0]["name"] == "demo:latest"
    assert httpx.get(f"{rig.base_url}/control/status").status_code == 404
    assert httpx.post(f"{rig.base_url}/control/detach", content=b"").status_code == 404


def test_api_keys_are_asked_of_tcp_clients_alone(rig: Rig) -> None:
    rig.start_gateway(listen="0.0.0.0:0", api_keys=("sesame", "other"))
    rig.base_url = rig.base_url.replace("0.0.0.0", "127.0.0.1")
    rig.serve()
    assert httpx.get(f"{rig.base_url}/").text == "Ollama is running"
    refused = httpx.get(f"{rig.base_url}/api/tags")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    with openai_client(rig, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with openai_client(rig, api_key="other") as client:
        assert [model.id for model in client.models.list()] == ["demo"]
    with ollama.Client(rig.base_url, headers={"Authorization": "Bearer sesame"}) as client:
        assert client.list().models[0].model == "demo:latest"
    with rig.client() as local:
        assert local.get("/api/tags").status_code == 200


def test_it_refuses_to_listen_to_the_world_without_keys(rig: Rig) -> None:
    with pytest.raises(AssertionError, match="refusing to listen on 0"):
        rig.start_gateway(listen="0.0.0.0:0")
    with pytest.raises(AssertionError, match="not an address and a port"):
        rig.start_gateway(listen="here")
    assert rig.gateway is not None
    assert rig.gateway.returncode == 3


def test_a_taken_port_and_a_taken_socket_are_named(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}"):
            rig.start_gateway(listen=f"127.0.0.1:{port}")
    rig.start_gateway()
    config = rig.directory / "gateway.json"
    again = subprocess.run(
        [sys.executable, "-m", "agent.api", str(config)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "another gateway answers" in again.stderr


def test_a_dead_gateways_socket_is_taken_over(rig: Rig) -> None:
    rig.start_gateway()
    assert rig.gateway is not None
    os.kill(rig.gateway.pid, signal.SIGKILL)
    rig.gateway.wait()
    assert rig.socket.exists()
    rig.start_gateway()
    assert rig.status().backends == ()


def test_pages_from_elsewhere_cannot_use_a_visitors_loopback(rig: Rig) -> None:
    rig.serve()
    with httpx.Client(base_url=rig.base_url) as client:
        local = client.get("/api/tags", headers={"origin": "http://localhost:3000"})
        assert local.headers["access-control-allow-origin"] == "http://localhost:3000"
        foreign = client.get("/api/tags", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers
        rebound = client.get("/v1/models", headers={"host": "evil.example"})
        assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host_not_allowed")
        preflight = client.options(
            "/api/chat",
            headers={"origin": "http://127.0.0.1:8080", "access-control-request-method": "POST"},
        )
        assert preflight.status_code == 200
