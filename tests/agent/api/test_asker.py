"""Who asks decides who is served next."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request as HttpRequest

from agent.api.asker import ON_THE_HOST, Asker, asker_of
from agent.api.fields import Fields
from agent.api.refusal import Refusal
from tests.agent.api.rig import SERVING, Rig, wait_until


def request(*, host: str = "10.0.0.7", keys: tuple[str, ...] = (), **headers: str) -> HttpRequest:
    app = SimpleNamespace(state=SimpleNamespace(gateway=SimpleNamespace(config=SimpleNamespace(api_keys=keys))))
    return HttpRequest(
        {
            "type": "http",
            "app": app,
            "client": (host, 1) if host else None,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
    )


def test_an_api_key_is_a_client_and_without_keys_an_address_is() -> None:
    keyed = [
        asker_of(request(host=host, keys=("a", "b"), authorization=f"Bearer {key}"), Fields({})).client
        for host, key in (("10.0.0.7", "a"), ("10.0.0.8", "a"), ("10.0.0.7", "b"))
    ]
    assert keyed[0] == keyed[1] != keyed[2]
    assert "a" not in keyed[0].removeprefix("key ").split(), "keys are not passed on"
    assert asker_of(request(authorization="Bearer made-up"), Fields({})) == Asker(client="10.0.0.7")
    assert asker_of(request(host=""), Fields({})).client == ON_THE_HOST


def test_a_priority_is_bounded_and_the_body_goes_before_the_header() -> None:
    assert asker_of(request(x_odctl_priority="-3"), Fields({})).priority == -3
    assert asker_of(request(x_odctl_priority="-3"), Fields({"priority": 4})).priority == 4
    for header in ("11", "urgent"):
        with pytest.raises(Refusal, match=r"`x-odctl-priority` must be .* from -10 to 10"):
            asker_of(request(x_odctl_priority=header), Fields({}))


def test_the_urgent_are_served_before_those_who_came_first(rig: Rig) -> None:
    rig.serve(step_s=0.02, serving=msgspec.structs.replace(SERVING, batch=1))
    ended: list[str] = []

    def ask(name: str, *, priority: int, count: int, **more: Any) -> None:
        body = {"model": "demo", "prompt": "x", "max_tokens": count, "priority": priority}
        httpx.post(f"{rig.base_url}/v1/completions", json=body, timeout=120, **more).raise_for_status()
        ended.append(name)

    with ThreadPoolExecutor(3) as clients:
        clients.submit(ask, "first", priority=-10, count=60)
        wait_until(lambda: rig.backend().running == 1, "the first one runs")
        clients.submit(ask, "patient", priority=10, count=1)
        wait_until(lambda: rig.backend().queued == 1, "the patient one waits")
        clients.submit(ask, "urgent", priority=-10, count=1)
        wait_until(lambda: rig.backend().queued == 2 or "urgent" in ended, "the urgent one waits too")
    assert ended == ["first", "urgent", "patient"]
