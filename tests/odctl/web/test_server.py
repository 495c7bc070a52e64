"""The guard over real HTTP: token, cookie, Host, Origin, headers, and the number of tabs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from odctl.web import server
from tests.odctl.web.serving import Served, open_tab, script_argv, serving, until, visitor

ROUTES = ("/", "/ws", "/static/js/textual.js", "/page/page.js", "/download/x", "/none")
STILL = """
import sys, time
sys.stdout.write("__GANGLION__\\n"); sys.stdout.flush()
sys.stdin.buffer.read(1)
"""
"""A process that shows nothing and ends at the first byte that it is sent."""


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(script_argv(STILL), max_tabs=1) as served:
        yield served


async def status_of(
    session: aiohttp.ClientSession, url: str, method: str = "GET", **headers: str
) -> tuple[int, str]:
    async with session.request(method, url, headers=headers, allow_redirects=False) as answer:
        return answer.status, await answer.text(errors="replace")


@pytest.mark.parametrize("route", ROUTES)
async def test_without_the_token_no_route_answers(served: Served, route: str) -> None:
    async with visitor(served, has_token=False) as session:
        status, text = await status_of(session, served.base + route, Origin=served.base)
        assert (status, text) == (401, "odctl: open the address that `odctl web` printed, with its token\n")
    assert served.token not in "".join(served.told)


async def test_the_first_visit_changes_the_token_for_a_cookie(served: Served) -> None:
    async with (
        visitor(served, has_token=False) as session,
        session.get(served.entrance, allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith(f"odctl-{served.port}=")
        assert {"HttpOnly", "Path=/", "SameSite=Strict"} == set(cookie.split("; ")[1:])
        assert served.token not in cookie
        status, text = await status_of(session, served.base)
        assert status == 200
        assert served.token not in text


@pytest.mark.parametrize("query", ["token=", "token=wrong", "token=%FF", "TOKEN=x", "token=x&token=y"])
async def test_a_wrong_token_opens_nothing(served: Served, query: str) -> None:
    async with visitor(served, has_token=False) as session:
        assert (await status_of(session, f"{served.base}/?{query}"))[0] == 401
        assert not list(session.cookie_jar)


async def test_the_token_opens_the_page_alone_and_is_no_cookie(served: Served) -> None:
    async with visitor(served, has_token=False) as session:
        for route in ROUTES[1:]:
            url = f"{served.base}{route}?token={served.token}"
            assert (await status_of(session, url, Origin=served.base))[0] == 401
        cookie = f"odctl-{served.port}={served.token}"
        assert (await status_of(session, served.base, Cookie=cookie))[0] == 401


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=["rebound name", "foreign page", "no origin at all", "another port"],
)
async def test_strangers_are_refused_even_with_the_cookie(
    served: Served, route: str, headers: dict[str, str]
) -> None:
    async with visitor(served) as session:
        status, text = await status_of(session, served.base + route, **headers)
        assert status == 403, text
        assert "evil.example" in text or "may not speak" in text
    assert served.told
    assert served.num_open == 0


async def test_a_foreign_websocket_is_refused_before_it_opens(served: Served) -> None:
    async with visitor(served) as session:
        for origin, said in (("http://evil.example", 403), ("null", 403)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with open_tab(served, session, origin=origin):
                    raise AssertionError("it opened")
            assert caught.value.status == said
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(f"{served.base}/ws")
        assert caught.value.status == 403
    async with visitor(served, has_token=False) as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with open_tab(served, session):
                raise AssertionError("it opened")
        assert caught.value.status == 401
    assert served.num_open == 0


async def test_nothing_is_written_here(served: Served) -> None:
    async with visitor(served) as session:
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert (await status_of(session, served.base, method))[0] == 405


@pytest.mark.parametrize("route", ["/", "/page/page.js", "/none", "/?token=wrong"])
async def test_every_answer_lets_a_page_load_our_own_files_only(served: Served, route: str) -> None:
    async with (
        visitor(served, has_token="wrong" not in route) as session,
        session.get(served.base + route) as answer,
    ):
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "frame-ancestors 'none'" in policy
        assert f"connect-src 'self' ws://127.0.0.1:{served.port};" in policy
        assert set(re.findall(r"\w+://\S+", policy)) == {f"ws://127.0.0.1:{served.port};"}
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Server" not in answer.headers


async def test_the_page_asks_nothing_of_another_site_and_has_all_it_asks_for(served: Served) -> None:
    async with visitor(served) as session:
        _, page = await status_of(session, f"{served.base}/?fontsize=20")
        _, style = await status_of(session, f"{served.base}/page/page.css")
        assert re.findall(r"https?://[^\"' ]+", page + style) == []
        assert "<title>odctl ▸ web-test</title>" in page
        assert f'data-session-websocket-url="ws://127.0.0.1:{served.port}/ws"' in page
        assert 'data-font-size="20"' in page
        assert "<script>" not in page
        assert not re.search(r"\son\w+=", page)
        for path in re.findall(r"(?:src|href|url\()[=\"]+(/[^\"]+)", page + style):
            assert (await status_of(session, served.base + path))[0] == 200, path


async def test_the_page_speaks_of_the_address_that_the_browser_sees(served: Served) -> None:
    """Through `ssh -L 9000:…` it is another port, and cookies are that port's."""
    async with visitor(served, has_token=False) as session:
        async with session.get(
            served.entrance, headers={"Host": "localhost:9000"}, allow_redirects=False
        ) as answer:
            cookie = answer.headers["Set-Cookie"].partition(";")[0]
        assert cookie.startswith("odctl-9000=")
        status, page = await status_of(session, served.base, Host="localhost:9000", Cookie=cookie)
        assert status == 200
        assert 'data-session-websocket-url="ws://localhost:9000/ws"' in page


async def test_behind_a_proxy_with_tls_the_cookie_is_secure() -> None:
    async with (
        serving(script_argv(STILL), origins=("https://lab.example",)) as served,
        visitor(served, has_token=False) as session,
        session.get(served.entrance, headers={"Host": "lab.example"}, allow_redirects=False) as answer,
    ):
        assert "Secure" in answer.headers["Set-Cookie"]
        assert "wss://lab.example" in answer.headers["Content-Security-Policy"]


async def test_no_more_tabs_than_allowed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEAT_TIMEOUT_S", 0.2)
    async with visitor(served) as session:
        async with open_tab(served, session):
            await until(lambda: served.num_open == 1)
            status, text = await status_of(session, served.base)
            assert status == 503
            assert "tabs open: 1, as many as --tabs allows" in text
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with open_tab(served, session):
                    raise AssertionError("it opened")
            assert caught.value.status == 503
        await until(lambda: served.num_open == 0)
        async with open_tab(served, session):
            await until(lambda: served.num_open == 1)


async def test_what_a_stranger_makes_us_tell_is_limited(served: Served) -> None:
    async with visitor(served, has_token=False) as session:
        for _ in range(server.MAX_TOLD + 20):
            await status_of(session, served.base, Host="evil.example\u00e9" * 40)
    assert len(served.told) == server.MAX_TOLD + 1
    assert all(len(line) < 400 for line in served.told)
    assert served.told[-1].startswith(f"{server.MAX_TOLD} lines told")


def test_the_page_is_packaged() -> None:
    names = {path.name for path in Path(server.PAGE).iterdir()}
    assert {"index.html", "page.css", "page.js"} <= names
