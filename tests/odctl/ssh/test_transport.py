"""The contract of a Transport, held by every backend (after Ansible's one playbook for all connections)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import stat
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from agent.errors import FleetError
from odctl.ssh.http import agent_client
from tests.odctl.ssh.conftest import Backend

MEGABYTE = 1 << 20


async def until(is_true: object, what: str, *, within_s: float = 10.0) -> None:
    assert callable(is_true)
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)


def processes_with(token: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(token in word for word in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


async def test_argv_arrives_as_it_was_given(backend: Backend) -> None:
    arguments = [
        "ünï ‑ 漢字 🦆",
        "two\nlines",
        "'single' \"double\"",
        "$HOME `id` $(id) \\",
        "",
        "-n",
        "*",
        "a;b&c|d>e",
        "!x",
    ]
    result = await backend.transport.run(["printf", "%s\\0", *arguments])
    assert result.exit_status == 0
    assert result.stdout.decode().split("\0") == [*arguments, ""]


async def test_commands_run_at_home_with_stdin_and_both_streams(backend: Backend) -> None:
    result = await backend.transport.run(["sh", "-c", 'pwd; cat; echo "$HOME" >&2'], stdin=b"\x00in\xff")
    assert result.stdout == f"{backend.home}\n".encode() + b"\x00in\xff"
    assert result.stderr == f"{backend.home}\n".encode()


async def test_stdin_is_at_its_end_when_none_is_given(backend: Backend) -> None:
    assert (await backend.transport.run(["cat"], timeout_s=10)).stdout == b""


async def test_ten_megabytes_on_both_streams_do_not_block(backend: Backend) -> None:
    script = "head -c 10485760 /dev/zero & head -c 10485760 /dev/zero >&2; wait"
    result = await backend.transport.run(["sh", "-c", script], timeout_s=60)
    assert (len(result.stdout), len(result.stderr)) == (10 * MEGABYTE, 10 * MEGABYTE)


async def test_ten_megabytes_of_stdin_come_back(backend: Backend) -> None:
    data = os.urandom(10 * MEGABYTE)
    assert (await backend.transport.run(["cat"], stdin=data)).stdout == data


async def test_stdin_that_nobody_reads_is_no_error(backend: Backend) -> None:
    assert (await backend.transport.run(["true"], stdin=b"x" * 3 * MEGABYTE)).exit_status == 0


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("exit 124", 124), ("exit 255", 255)])
async def test_exit_statuses_are_kept(backend: Backend, script: str, status: int) -> None:
    assert (await backend.transport.run(["sh", "-c", script])).exit_status == status


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("KILL", 137), ("SEGV", 139)])
async def test_a_signal_is_128_and_its_number(backend: Backend, name: str, status: int) -> None:
    assert (await backend.transport.run(["sh", "-c", f"kill -{name} $$"])).exit_status == status


async def test_an_unknown_command_is_127(backend: Backend) -> None:
    result = await backend.transport.run(["odctl-no-such-command"])
    assert result.exit_status == 127
    assert b"No such file" in result.stderr


async def test_check_turns_a_status_into_an_error_with_the_end_of_stderr(backend: Backend) -> None:
    with pytest.raises(FleetError) as caught:
        await backend.transport.run(["sh", "-c", "echo lost; echo 'no space left' >&2; exit 3"], check=True)
    assert (caught.value.code, caught.value.host) == ("E301", "box")
    assert "status 3" in caught.value.message
    assert "no space left" in caught.value.message


async def test_a_cancelled_command_dies_with_its_children(backend: Backend) -> None:
    token = f"token-{uuid.uuid4()}"
    script = f"sh -c 'sleep 600; : {token}' & sleep 600; : {token}"

    async def run() -> None:
        await backend.transport.run(["sh", "-c", script], timeout_s=600)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        await until(lambda: len(processes_with(token)) >= 2, "the command runs")
        task.cancel()
    await until(lambda: processes_with(token) == [], "nothing of it is left")
    assert (await backend.transport.run(["echo", "next"])).text == "next\n"


async def test_a_command_cancelled_at_any_moment_of_its_start_dies_with_its_children(backend: Backend) -> None:
    for steps in range(12):
        token = f"token-{uuid.uuid4()}"
        script = f"sh -c 'sleep 600; : {token}' & sleep 600; : {token}"
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            task = group.create_task(backend.transport.run(["sh", "-c", script], timeout_s=600))
            await asyncio.sleep(0.001)
            for _ in range(steps):
                await asyncio.sleep(0)
            time.sleep(0.02)  # noqa: ASYNC251 - the process goes on while this loop stands still
            task.cancel()
        await until(lambda token=token: processes_with(token) == [], "nothing of it is left")


async def test_a_command_past_its_time_dies_and_says_so(backend: Backend) -> None:
    token = f"token-{uuid.uuid4()}"
    with pytest.raises(FleetError, match="did not finish in 0") as caught:
        await backend.transport.run(["sh", "-c", f"sleep 600; : {token}"], timeout_s=0.5)
    assert caught.value.code == "E301"
    await until(lambda: processes_with(token) == [], "nothing of it is left")


async def test_a_command_that_ignores_sigterm_is_killed(backend: Backend) -> None:
    token = f"token-{uuid.uuid4()}"
    script = f"trap '' TERM; while :; do sleep 0.1; done; : {token}"
    with pytest.raises(FleetError):
        await backend.transport.run(["sh", "-c", script], timeout_s=0.5)
    await until(lambda: processes_with(token) == [], "nothing of it is left", within_s=15)


async def test_many_commands_at_once_are_all_answered(backend: Backend) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(backend.transport.run(["echo", str(n)])) for n in range(30)]
    assert [task.result().text for task in tasks] == [f"{n}\n" for n in range(30)]


async def test_a_file_goes_there_and_back_unchanged(backend: Backend, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(10 * MEGABYTE + 17))
    seen: list[tuple[int, int]] = []
    target = backend.home / "new dir" / "-ü" / "file"

    def see(done: int, total: int) -> None:
        seen.append((done, total))

    await backend.transport.put(source, str(target), mode=0o750, on_progress=see)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    await until(lambda: bool(seen) and seen[-1] == (10 * MEGABYTE + 17,) * 2, "progress reaches the end")
    assert seen == sorted(seen)
    await backend.transport.get(str(target), tmp_path / "sub" / "back.bin")
    assert (tmp_path / "sub" / "back.bin").read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["file"]


async def test_paths_start_at_home(backend: Backend, tmp_path: Path) -> None:
    await backend.transport.put_bytes(b"", "~/empty", mode=0o600)
    await backend.transport.put_bytes(b"1", "-relative/one")
    assert (backend.home / "empty").read_bytes() == b""
    assert stat.S_IMODE((backend.home / "empty").stat().st_mode) == 0o600
    await backend.transport.get("~/-relative/one", tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == b"1"


async def test_put_replaces_a_running_file_without_touching_it(backend: Backend, tmp_path: Path) -> None:
    target = backend.home / "replaced"
    await backend.transport.put_bytes(b"old", str(target))
    with target.open("rb") as opened:
        await backend.transport.put_bytes(b"new", str(target))
        assert opened.read() == b"old"
    assert target.read_bytes() == b"new"


async def test_a_copy_that_cannot_be_made_names_the_file_and_the_reason(backend: Backend, tmp_path: Path) -> None:
    await backend.transport.put_bytes(b"x", "~/file-in-the-way")
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3 * MEGABYTE)
    with pytest.raises(FleetError) as caught:
        await backend.transport.put(source, "~/file-in-the-way/below")
    assert (caught.value.code, caught.value.host) == ("E301", "box")
    with pytest.raises(FleetError, match="No such file") as caught:
        await backend.transport.get("~/no-such-file", tmp_path / "never")
    assert caught.value.code == "E301"
    with pytest.raises(FleetError, match="No such file"):
        await backend.transport.put(tmp_path / "no-such-source", "~/never")
    assert not (tmp_path / "never").exists()
    assert not (backend.home / "never").exists()


async def test_a_cancelled_copy_leaves_nothing(backend: Backend, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(300 * MEGABYTE)
    target = backend.home / f"copy-{secrets.token_hex(4)}"
    moving = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            backend.transport.put(source, str(target), on_progress=lambda _done, _total: moving.set())
        )
        await asyncio.wait_for(moving.wait(), 10)
        task.cancel()
    await until(
        lambda: not [path for path in backend.home.iterdir() if target.name in path.name], "nothing is left"
    )


@asynccontextmanager
async def http_server(path: Path) -> AsyncIterator[None]:
    """HTTP/1.1 by hand: echoes bodies, streams five events, drops a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int((re.search(rb"(?i)content-length: *(\d+)", head) or [b"", b"0"])[1])
                body = await reader.readexactly(length)
                if head.startswith(b"GET /events"):
                    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    for number in range(5):
                        writer.write(b"7\r\nevent %d\r\n" % number)
                        await writer.drain()
                    writer.write(b"0\r\n\r\n")
                elif head.startswith(b"GET /drop"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
                    break
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield


async def test_a_unix_socket_carries_bytes_both_ways(backend: Backend) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
        writer.close()

    path = backend.home / f"{secrets.token_hex(4)}.sock"
    data = os.urandom(2 * MEGABYTE)
    async with await asyncio.start_unix_server(echo, path):
        stream = await backend.transport.open_unix(str(path))
        received = b""
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.write(data))
            while len(received) < len(data):
                received += await stream.read(65536)
        assert received == data
        await stream.close()
        relative = await backend.transport.open_unix(f"~/{path.name}")
        await relative.write(b"x")
        assert await relative.read(10) == b"x"
        await relative.close()


async def test_the_end_of_the_other_side_is_read_as_an_end(backend: Backend) -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    path = backend.home / f"{secrets.token_hex(4)}.sock"
    async with await asyncio.start_unix_server(hang_up, path):
        stream = await backend.transport.open_unix(str(path))
        assert await stream.read(100) == b"bye"
        assert await stream.read(100) == b""
        await stream.close()


async def test_http_over_the_socket(backend: Backend) -> None:
    path = backend.home / f"{secrets.token_hex(4)}.sock"
    async with http_server(path), agent_client(backend.transport, str(path)) as client:
        for body in (b"", b"small", os.urandom(3 * MEGABYTE)):
            answer = await client.post("/echo", content=body)
            assert (answer.status_code, answer.content) == (200, body)
        async with client.stream("GET", "/events") as stream:
            text = b"".join([block async for block in stream.aiter_bytes()])
        assert text == b"".join(b"event %d" % number for number in range(5))
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/drop")
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(client.post("/echo", content=str(n).encode())) for n in range(10)]
        assert [task.result().text for task in answers] == [str(n) for n in range(10)]


async def test_no_socket_there_is_told_through_http_too(backend: Backend) -> None:
    async with agent_client(backend.transport, str(backend.home / "none.sock")) as client:
        with pytest.raises(FleetError) as caught:
            await client.get("/")
    assert (caught.value.code, caught.value.host) == ("E206", "box")
    assert "odctl bootstrap" in caught.value.hint


async def test_a_socket_whose_owner_died_refuses(backend: Backend) -> None:
    path = backend.home / f"{secrets.token_hex(4)}.sock"
    (await asyncio.start_unix_server(lambda _r, _w: None, path)).close()
    with pytest.raises(FleetError) as caught:
        await backend.transport.open_unix(str(path))
    assert caught.value.code == "E206"


async def test_any_event_loop_may_use_it(backend: Backend) -> None:
    await backend.transport.connect()
    found: list[str] = []

    def other_loop() -> None:
        found.append(asyncio.run(backend.transport.run(["echo", "elsewhere"])).text)

    thread = threading.Thread(target=other_loop)
    thread.start()
    await asyncio.to_thread(thread.join, 20)
    assert found == ["elsewhere\n"]


async def test_it_can_be_closed_twice_and_used_again(backend: Backend) -> None:
    await backend.transport.connect()
    await backend.transport.close()
    await backend.transport.close()
    assert (await backend.transport.run(["echo", "again"])).text == "again\n"
