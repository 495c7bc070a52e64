"""`odctl web` as a process: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from odctl.web.token_file import new_token
from tests.odctl.web.serving import read_until, until, write_inventory

END_TIMEOUT_S = 25.0


def odctl(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "odctl", "-i", str(inventory), "web", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@asynccontextmanager
async def running(
    inventory: Path, *arguments: str, before: Sequence[str] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The server and the address that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "odctl", "-i", str(inventory), *before, "web", "--port", "0", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def tab_of(address: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    base = address.partition("/?")[0]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(address) as answer:
            assert answer.status == 200
        async with session.ws_connect(f"{base}/ws", headers={"Origin": base}) as websocket:
            yield websocket


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_it_with_all_its_tabs(tmp_path: Path, number: signal.Signals) -> None:
    async with running(write_inventory(tmp_path)) as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
        async with tab_of(address) as first, tab_of(address) as second:
            await read_until(first, "▸ Fleet")
            await read_until(second, "▸ Fleet")
            tabs = psutil.Process(process.pid).children(recursive=True)
            assert len(tabs) == 2
            process.send_signal(number)
            async with asyncio.timeout(END_TIMEOUT_S):
                stdout, stderr = await process.communicate()
        assert (process.returncode, stdout) == (0, b"")
        assert stderr.decode().splitlines() == [
            "read-only; --write allows changes",
            "Ctrl-C ends it, and every tab",
            "ending every tab …",
        ]
        assert not [tab for tab in tabs if tab.is_running() and tab.status() != psutil.STATUS_ZOMBIE]


async def test_tabs_end_even_when_the_server_is_killed(tmp_path: Path) -> None:
    """Nobody tells them then: they look for their parent."""
    async with running(write_inventory(tmp_path)) as (process, address), tab_of(address) as websocket:
        await read_until(websocket, "▸ Fleet")
        (tab,) = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        await until(lambda: not tab.is_running() or tab.status() == psutil.STATUS_ZOMBIE, END_TIMEOUT_S)


async def test_the_address_is_also_json(tmp_path: Path) -> None:
    async with running(write_inventory(tmp_path), "--json", "--write") as (process, first):
        assert process.stdout is not None
        document = json.loads(first + (await process.stdout.readuntil(b"\n}\n")).decode())
        assert (document["kind"], document["data"]["is_read_only"]) == ("web", False)
        assert document["data"]["url"].startswith(f"http://127.0.0.1:{document['data']['port']}/?token=")
        process.send_signal(signal.SIGINT)
        stdout, _ = await process.communicate()
        assert json.loads(stdout)["kind"] == "web-end"


async def test_tabs_look_as_the_server_was_told(tmp_path: Path) -> None:
    argv = ["--ascii", "--theme", "paper"]
    async with running(write_inventory(tmp_path), before=argv) as (process, address), tab_of(address) as websocket:
        shown = await read_until(websocket, "> Fleet")
        assert shown.isascii()
        (tab,) = psutil.Process(process.pid).children()
        assert tab.cmdline()[-4:] == ["--read-only", "--ascii", "--theme", "paper"]


async def test_a_token_of_a_file_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    async with running(write_inventory(tmp_path), "--token-file", str(path)) as (_, address):
        token = path.read_text().strip()
        assert address.endswith(f"/?token=<the token in {path}>")
        async with tab_of(address.partition("token=")[0] + f"token={token}") as websocket:
            await read_until(websocket, "▸ Fleet")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "lab.example"])
def test_the_network_is_not_served_by_accident(tmp_path: Path, host: str) -> None:
    done = odctl(write_inventory(tmp_path), "--host", host)
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        f"error[E120]: --host {host} would carry the UI, and its token, over the network in plain HTTP"
        in done.stderr
    )
    assert "ssh -L 7117:127.0.0.1:7117" in done.stderr
    assert "--allow-remote" in done.stderr


async def test_the_network_is_served_on_demand_under_names_that_were_given(tmp_path: Path) -> None:
    arguments = ("--host", "0.0.0.0", "--allow-remote", "--origin", "http://lab.example")
    async with running(write_inventory(tmp_path), *arguments) as (_, address), aiohttp.ClientSession() as session:
        local = address.replace("0.0.0.0", "127.0.0.1")
        for host, status in (("lab.example", 303), ("other.example", 403), ("0.0.0.0", 403)):
            async with session.get(local, headers={"Host": host}, allow_redirects=False) as answer:
                assert (host, answer.status) == (host, status)


def test_bad_files_and_addresses_say_what_is_wrong(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path)
    token = tmp_path / "token"
    token.write_text(new_token())
    token.chmod(0o644)
    for arguments, code, said in (
        (("--token-file", str(token)), 3, f"chmod 600 {token}"),
        (("--origin", "lab.example"), 3, "--origin 'lab.example' is no origin"),
        (("--port", "70000"), 2, "70000 is not in the range"),
    ):
        done = odctl(inventory, *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
    missing = odctl(tmp_path / "none.toml")
    assert missing.returncode == 3
    assert "odctl init" in missing.stderr


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path)
    async with running(inventory) as (_, address):
        port = re.findall(r":(\d+)/", address)[0]
        done = await asyncio.to_thread(odctl, inventory, "--port", port)
    assert done.returncode == 1
    assert f"error[E902]: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port 0" in done.stderr


def test_without_the_extra_the_way_out_is_told(tmp_path: Path) -> None:
    """A directory with a broken package of the name stands before the real one."""
    (tmp_path / "textual_serve.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'textual_serve'\", name='textual_serve')\n"
    )
    argv = [sys.executable, "-m", "odctl", "-i", str(write_inventory(tmp_path)), "web"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 1
    assert "error[E903]: the browser's part of odctl is not installed (textual_serve)" in done.stderr
    assert "pip install 'odctl[web]'" in done.stderr
