"""Requests in flight: who is listed, and how one ends that an operator cancels."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import ollama
import openai
import pytest

from agent.errors import FleetError
from agent.wire.gateway import AskRequests, CancelRequest, RequestReport, RequestView
from tests.agent.api.rig import SERVING, Rig, wait_until

SLOW_S = 0.03
ONE_SLOT = msgspec.structs.replace(SERVING, batch=1)


def in_flight(rig: Rig, deployment: str = "demo") -> tuple[RequestView, ...]:
    answer = rig.control("requests", AskRequests(deployment=deployment))
    return msgspec.msgpack.decode(answer, type=RequestReport).requests


def cancel(rig: Rig, request_id: str, deployment: str = "demo") -> RequestView:
    order = CancelRequest(deployment=deployment, request_id=request_id, by="ann@desk:7")
    return msgspec.msgpack.decode(rig.control("cancel", order), type=RequestView)


def complete(rig: Rig, **body: Any) -> httpx.Response:
    body = {"model": "demo", "prompt": "x", "max_tokens": 200, "temperature": 0} | body
    return httpx.post(f"{rig.base_url}/v1/completions", json=body, timeout=20)


def running(rig: Rig) -> RequestView:
    """The only one, once it has a few tokens."""

    def found() -> RequestView | None:
        views = [view for view in in_flight(rig) if view.state == "running" and view.generated_tokens > 2]
        return views[0] if views else None

    view = wait_until(found, "a request runs")
    assert isinstance(view, RequestView)
    return view


def test_those_that_run_come_before_those_that_wait(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S, serving=ONE_SLOT)
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(complete, rig, max_tokens=60)
        running(rig)
        second = clients.submit(complete, rig, prompt="yy", max_tokens=1)
        views = wait_until(lambda: len(found := in_flight(rig)) == 2 and found, "one runs, one waits")
        assert [view.state for view in views] == ["running", "queued"]
        assert [view.client for view in views] == ["127.0.0.1", "127.0.0.1"]
        assert [view.max_tokens for view in views] == [60, 1]
        runs, waits = views
        assert (runs.generation, runs.replica, runs.priority) == (1, 0, 0)
        assert runs.computed_tokens >= runs.prompt_tokens > 0
        assert 0 < runs.ttft_s < runs.age_s
        assert 0 < runs.tokens_per_s < 1 / SLOW_S
        assert (waits.generated_tokens, waits.ttft_s, waits.tokens_per_s, waits.computed_tokens) == (
            0,
            None,
            None,
            0,
        )
        assert waits.age_s < runs.age_s
        ids = [future.result().headers["x-request-id"] for future in (first, second)]
    assert ids == [view.request_id for view in views], "what a client can quote is what an operator reads"
    assert in_flight(rig) == ()


def test_a_cancelled_stream_ends_with_an_error_and_frees_its_slot(rig: Rig) -> None:
    """1. One streams, one waits. 2. The first is cancelled: its client gets an error. 3. The second is answered."""
    rig.serve(step_s=SLOW_S, serving=ONE_SLOT)

    def stream() -> str:
        with openai.OpenAI(base_url=f"{rig.base_url}/v1", api_key="unused", max_retries=2) as client:
            pieces = client.completions.create(model="demo", prompt="x", max_tokens=200, stream=True)
            seen: list[str] = []
            with pytest.raises(openai.APIError, match="an operator cancelled this request") as caught:
                seen.extend(piece.choices[0].text for piece in pieces)
            assert caught.value.code == "E820"
            return "".join(seen)

    with ThreadPoolExecutor(2) as clients:
        streaming = clients.submit(stream)
        view = running(rig)
        waiting = clients.submit(complete, rig, max_tokens=2)
        wait_until(lambda: rig.backend().queued == 1, "the second waits")
        ended = cancel(rig, view.request_id)
        assert (ended.request_id, ended.state) == (view.request_id, "running")
        assert streaming.result(), "it had begun"
        assert waiting.result().status_code == 200
    status = rig.backend()
    assert (status.cancelled, status.finished, status.failed) == (1, 1, 0)
    assert (status.running, status.blocks_held) == (0, 0)
    assert status.kv_blocks > 0


def test_a_cancelled_request_is_not_asked_again_by_its_client(rig: Rig) -> None:
    """OpenAI's client repeats what failed with a 5xx by itself: this it must not."""
    rig.serve(step_s=SLOW_S, serving=ONE_SLOT)

    def ask() -> int:
        with openai.OpenAI(base_url=f"{rig.base_url}/v1", api_key="unused", max_retries=3) as client:
            with pytest.raises(openai.APIStatusError, match="an operator cancelled") as caught:
                client.completions.create(model="demo", prompt="x", max_tokens=200)
            assert caught.value.code == "request_cancelled"
            return caught.value.status_code

    with ThreadPoolExecutor(2) as clients:
        blocking = clients.submit(complete, rig, max_tokens=40)
        running(rig)
        asking: Future[int] = clients.submit(ask)
        [waits] = wait_until(
            lambda: [view for view in in_flight(rig) if view.state == "queued"], "the second waits"
        )
        assert cancel(rig, waits.request_id).generated_tokens == 0
        assert asking.result() == 500
        assert blocking.result().status_code == 200
    assert len(rig.sent_params()) == 1, "what waited never reached a rank"


def test_ollamas_client_hears_of_it_too(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)

    def stream() -> None:
        options = {"num_predict": 200}
        with (
            ollama.Client(rig.base_url) as client,
            pytest.raises(ollama.ResponseError, match="an operator cancelled"),
        ):
            for _ in client.generate("demo", "x", raw=True, stream=True, options=options):
                pass

    with ThreadPoolExecutor(1) as clients:
        streaming = clients.submit(stream)
        cancel(rig, running(rig).request_id)
        streaming.result()
    assert rig.backend().cancelled == 1


def test_one_choice_cancelled_ends_the_call(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)
    with ThreadPoolExecutor(1) as clients:
        asking = clients.submit(complete, rig, n=3)
        views = wait_until(lambda: len(found := in_flight(rig)) == 3 and found, "three choices run")
        whole = views[0].request_id
        assert [view.request_id for view in views] == [whole, f"{whole}.1", f"{whole}.2"]
        cancel(rig, f"{whole}.2")
        answer = asking.result()
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    wait_until(lambda: in_flight(rig) == (), "the other choices are of no use to anybody")
    assert rig.backend().cancelled == 3


def test_a_beginning_is_enough_while_it_is_the_only_one(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)
    with ThreadPoolExecutor(2) as clients:
        asking = [clients.submit(complete, rig, n=2), clients.submit(complete, rig)]
        views = wait_until(lambda: len(found := in_flight(rig)) == 3 and found, "three run")
        whole = next(view.request_id for view in views if view.request_id.endswith(".1")).removesuffix(".1")
        with pytest.raises(FleetError) as several:
            cancel(rig, whole.removeprefix("req_")[:-1])
        assert several.value.code == "E125"
        assert several.value.message.startswith("2 requests of demo begin with")
        assert cancel(rig, whole).request_id == whole, "a whole id is exact, whatever else begins like it"
        alone = next(view.request_id for view in views if not view.request_id.startswith(whole))
        assert cancel(rig, alone.removeprefix("req_")[:8]).request_id == alone
        assert {future.result().status_code for future in asking} == {500}


@pytest.mark.parametrize(
    ("deployment", "request_id", "code"),
    [("demo", "req_0", "E125"), ("demo", "", "E125"), ("demo", "req_", "E125"), ("other", "req_0", "E812")],
)
def test_what_is_not_in_flight_is_refused(serving_rig: Rig, deployment: str, request_id: str, code: str) -> None:
    with pytest.raises(FleetError) as refused:
        cancel(serving_rig, request_id, deployment)
    assert refused.value.code == code
    assert deployment in refused.value.message


def test_a_canary_is_nobodys_request(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)
    with ThreadPoolExecutor(1) as checks:
        checking = checks.submit(rig.check)
        seen: list[RequestView] = []
        while not checking.done():
            seen += in_flight(rig)
        assert checking.result().is_ok
    assert seen == []
