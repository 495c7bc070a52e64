"""The Transport over SSH. Every method hands its work to the SSH loop and may be awaited from any other.

Files travel through `cat` on an exec channel rather than SFTP: it is about as fast (176 against 188 MB/s over
loopback, 200 MB), and works where SFTP does not (a `.bashrc` that prints breaks SFTP's first packet; some hosts
switch it off): one way for all hosts.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from agent.errors import FleetError
from odctl.inventory import Host, Inventory
from odctl.ssh import command, failures
from odctl.ssh.link import Keepalive, Link, link_to
from odctl.ssh.loop import on_ssh_loop
from odctl.ssh.transport import ByteStream, RemoteResult

log = logging.getLogger(__name__)

T = TypeVar("T")
Process = asyncssh.SSHClientProcess[bytes]

MAX_SESSIONS = 8
"""Commands at once on one connection; sshd's MaxSessions is 10 by default."""
MAX_OPEN_ATTEMPTS = 5
OPEN_S = 15.0
"""To open a channel: asyncssh can wait for ever on a connection that dies meanwhile."""
STOP_S = 5.0
"""To stop a command that was cancelled or took too long."""
STOP_POLL_S = 0.02
MAX_STOPS = 2
"""Commands that stop others, at once: what MAX_SESSIONS leaves of sshd's limit."""
CLOSE_S = 2.0
REMOTE_GRACE_S = 10.0
"""The host's own `timeout` comes this much after ours, and only if ours could not reach it."""
COPY_BLOCK_BYTES = 256 << 10
COPY_STALL_S = 60.0
"""A copy that moves nothing for so long has failed."""
STALE_S = 2.0
"""A connection that fails within this time was lost earlier, and unnoticed."""
MAX_NOISE_BYTES = 1 << 20

_LOST = (asyncssh.DisconnectError, ConnectionError, asyncssh.ChannelOpenError)


class AsyncsshTransport:
    """One host over one SSH connection, opened at first use and again after a loss."""

    def __init__(
        self,
        inventory: Inventory,
        host: Host,
        *,
        accept_new: bool = False,
        keepalive: Keepalive | None = None,
    ) -> None:
        self._host = host.name
        self._inventory = inventory
        self._inventory_host = host
        self._accept_new = accept_new
        self._keepalive = keepalive or Keepalive()
        self._link: Link | None = None
        # Since Python 3.10 these take the loop of their first use, which is the SSH loop.
        self._sessions = asyncio.Semaphore(MAX_SESSIONS)
        self._stops = asyncio.Semaphore(MAX_STOPS)
        self._home = ""

    @property
    def host(self) -> str:
        return self._host

    async def connect(self) -> None:
        await self._work(self._connection())

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0, check: bool = False
    ) -> RemoteResult:
        result = await self._work(self._run(argv, stdin=stdin, timeout_s=timeout_s))
        if check and result.exit_status != 0:
            raise failures.command_failed(self._host, argv, result)
        return result

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        report = _on_loop_of_caller(on_progress)
        try:
            await self._work(self._put(source, target, mode=mode, on_progress=report))
        except OSError as error:
            raise failures.copy_failed(self._host, str(source), error.strerror or str(error)) from error

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        await self.run(
            command.store_argv(target, mode=mode, size=len(data)), stdin=data, timeout_s=COPY_STALL_S, check=True
        )

    async def get(self, source: str, target: Path) -> None:
        try:
            await self._work(self._get(source, target))
        except OSError as error:
            raise failures.copy_failed(self._host, source, error.strerror or str(error)) from error

    async def open_unix(self, path: str) -> ByteStream:
        if not path.startswith("/"):
            path = f"{await self._home_there()}/{path.removeprefix('~/')}"
        reader, writer = await self._work(self._open_unix(path))
        return SshStream(self._host, reader, writer)

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await self._work(link.close())

    async def _work(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await on_ssh_loop(work)
        except FleetError as error:
            if error.host in ("", self._host):
                raise
            # A jump's trouble is told as trouble of the host that the operator asked for.
            message = f"jump host {error.host}: {error.message}"
            raise FleetError(error.code, message, hint=error.hint, host=self._host) from error

    async def _connection(self) -> asyncssh.SSHClientConnection:
        if self._link is None:
            self._link = link_to(
                self._inventory, self._inventory_host, accept_new=self._accept_new, keepalive=self._keepalive
            )
        return await self._link.get()

    @asynccontextmanager
    async def _process(self, argv: Sequence[str], *, limit_s: float | None) -> AsyncIterator[tuple[Process, bytes]]:
        """A started command and the marker before its output; stopped if it still runs at the end."""
        shell = command.shell_line(argv, limit_s=limit_s)
        async with self._sessions:
            process = await self._open_session(shell.line)
            try:
                yield process, shell.marker
            finally:
                if process.exit_status is None and process.exit_signal is None:
                    await self._stop(process, shell.marker)
                process.close()

    async def _open_session(self, line: str) -> Process:
        """Tried again while the host says that it has too many sessions; they end by themselves."""
        for attempt in range(1, MAX_OPEN_ATTEMPTS + 1):
            try:
                return await self._open_channel(lambda connection: connection.create_process(line, encoding=None))
            except asyncssh.ChannelOpenError as error:
                if attempt == MAX_OPEN_ATTEMPTS:
                    reason = f"no session can be opened: {error.reason}"
                    hint = "see MaxSessions in sshd_config"
                    raise failures.unreachable(self._host, reason, hint=hint) from error
                await asyncio.sleep(random.uniform(0.2, 0.6) * attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _open_channel(self, open_it: Callable[[asyncssh.SSHClientConnection], Awaitable[T]]) -> T:
        """Open a channel, on a new connection where the old one turns out to be lost.

        Raises ChannelOpenError when the host refuses the channel, FleetError E201 when the way there is gone.
        """
        started = time.monotonic()
        is_first = True
        while True:
            connection = await self._connection()
            try:
                async with asyncio.timeout(OPEN_S):
                    return await open_it(connection)
            except TimeoutError as error:
                connection.abort()
                raise failures.connection_lost(self._host, f"no channel opened in {OPEN_S:g} s") from error
            except _LOST as error:
                if isinstance(error, asyncssh.ChannelOpenError) and not _is_lost(connection, error):
                    raise
                assert self._link is not None
                self._link.forget(connection)
                # Nothing has run yet, so trying again is safe; but a link that was silent for long is dead.
                if not is_first or time.monotonic() - started > STALE_S:
                    raise failures.connection_lost(self._host, str(error)) from error
                is_first = False

    async def _stop(self, process: Process, marker: bytes) -> None:
        """End a command on the host; bounded, as the connection may be gone, and its `timeout` is there too."""
        connection = process.get_extra_info("connection")
        stderr = b""
        try:
            async with asyncio.timeout(STOP_S):
                while (group := command.group_of(stderr, marker)) is None:
                    stderr += process.collect_output()[1]
                    if connection.is_closed() or process.exit_status is not None:
                        return
                    # The command may have been given up before its first line came.
                    await asyncio.sleep(STOP_POLL_S)
                line = command.shell_line(command.stop_argv(group), limit_s=STOP_S).line
                async with self._stops:
                    await connection.run(line, encoding=None, stdin=asyncssh.DEVNULL)
        except (TimeoutError, *_LOST) as error:
            log.warning("%s: a command may still run: %s", self._host, error or f"no answer in {STOP_S:g} s")

    async def _run(self, argv: Sequence[str], *, stdin: bytes, timeout_s: float) -> RemoteResult:
        async with self._process(argv, limit_s=timeout_s + REMOTE_GRACE_S) as (process, marker):
            try:
                async with asyncio.timeout(timeout_s):
                    try:
                        process.stdin.write(stdin)
                        process.stdin.write_eof()
                    except BrokenPipeError:
                        # A quick command is over before it was given its input; its result is there all the same.
                        log.debug("%s: `%s` took no input", self._host, argv[0])
                    stdout, stderr = await process.communicate()
            except TimeoutError as error:
                raise failures.command_timed_out(self._host, argv, timeout_s) from error
            except _LOST as error:
                raise failures.connection_lost(self._host, str(error)) from error
            return self._result(process, argv, stdout, stderr, marker)

    def _result(
        self, process: Process, argv: Sequence[str], stdout: bytes, stderr: bytes, marker: bytes
    ) -> RemoteResult:
        status = process.returncode
        if status is None:
            raise failures.connection_lost(self._host, f"while `{failures.shown_command(argv)}` was running")
        own_stdout = command.after_marker(stdout, marker)
        own_stderr = command.after_marker(stderr, marker)
        if own_stdout is None:
            said = (stdout + stderr).decode(errors="replace").strip() or "nothing"
            message = f"the login shell ended with status {status} before our command; it said: {said[:400]}"
            raise FleetError(failures.COMMAND_FAILED, message, host=self._host)
        return RemoteResult(
            exit_status=128 - status if status < 0 else status,
            stdout=own_stdout,
            stderr=stderr if own_stderr is None else own_stderr,
        )

    async def _put(
        self, source: Path, target: str, *, mode: int, on_progress: Callable[[int, int], None] | None
    ) -> None:
        with await asyncio.to_thread(source.open, "rb") as file:
            size = (await asyncio.to_thread(source.stat)).st_size
            argv = command.store_argv(target, mode=mode, size=size)
            async with self._process(argv, limit_s=None) as (process, marker):
                ending = "it stopped reading"
                try:
                    done = 0
                    while block := await asyncio.to_thread(file.read, COPY_BLOCK_BYTES):
                        async with asyncio.timeout(COPY_STALL_S):
                            process.stdin.write(block)
                            await process.stdin.drain()
                        done += len(block)
                        if on_progress:
                            on_progress(done, size)
                    process.stdin.write_eof()
                except TimeoutError as error:
                    reason = f"nothing moved for {COPY_STALL_S:g} s"
                    raise failures.copy_failed(self._host, str(source), reason) from error
                except BrokenPipeError:
                    ending = "the host stopped reading"  # its own words come with the result below
                except _LOST as error:
                    raise failures.connection_lost(self._host, str(error)) from error
                try:
                    async with asyncio.timeout(COPY_STALL_S):
                        stdout, stderr = await process.communicate()
                except TimeoutError as error:
                    raise failures.copy_failed(self._host, str(source), "the host did not finish") from error
                result = self._result(process, argv, stdout, stderr, marker)
        if result.exit_status != 0:
            reason = result.stderr.decode(errors="replace").strip() or ending
            raise failures.copy_failed(self._host, f"{source} to {target}", reason)

    async def _get(self, source: str, target: Path) -> None:
        argv = ["cat", "--", command.host_path(source)]
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        try:
            with await asyncio.to_thread(partial.open, "xb") as file:
                async with self._process(argv, limit_s=None) as (process, marker):
                    process.stdin.write_eof()
                    head = await self._receive(process, marker, file.write)
                    stdout, stderr = await process.communicate()
                    result = self._result(process, argv, head + stdout, stderr, marker)
            if result.exit_status != 0:
                raise failures.copy_failed(self._host, source, result.stderr.decode(errors="replace").strip())
            await asyncio.to_thread(partial.replace, target)
        finally:
            partial.unlink(missing_ok=True)

    async def _receive(self, process: Process, marker: bytes, write: Callable[[bytes], object]) -> bytes:
        """Everything after the marker goes to `write`; returns what came up to it."""
        head = b""
        is_content = False
        try:
            while True:
                async with asyncio.timeout(COPY_STALL_S):
                    block = await process.stdout.read(COPY_BLOCK_BYTES)
                if not block:
                    return head
                if is_content:
                    await asyncio.to_thread(write, block)
                    continue
                head += block
                content = command.after_marker(head, marker)
                if content is not None:
                    is_content, head = True, head[: len(head) - len(content)]
                    await asyncio.to_thread(write, content)
                elif len(head) > MAX_NOISE_BYTES:
                    return head
        except TimeoutError as error:
            reason = f"nothing came for {COPY_STALL_S:g} s"
            raise failures.copy_failed(self._host, "a file", reason) from error
        except _LOST as error:
            raise failures.connection_lost(self._host, str(error)) from error

    async def _home_there(self) -> str:
        if not self._home:
            self._home = (await self.run(["pwd"], check=True)).text.strip()
        return self._home

    async def _open_unix(self, path: str) -> tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]:
        try:
            return await self._open_channel(lambda connection: connection.open_unix_connection(path))
        except asyncssh.ChannelOpenError as error:
            raise await self._why_no_socket(await self._connection(), path, error) from error

    async def _why_no_socket(
        self, connection: asyncssh.SSHClientConnection, path: str, error: asyncssh.ChannelOpenError
    ) -> FleetError:
        """sshd says "open failed" whether the socket is missing or forwarding is off; ask it about a TCP port."""
        found = await self._run(["test", "-S", path], stdin=b"", timeout_s=OPEN_S)
        if found.exit_status != 0:
            return failures.no_socket(self._host, path, "no socket there")
        try:
            async with asyncio.timeout(OPEN_S):
                _, writer = await connection.open_connection("127.0.0.1", 1)
            writer.close()
        except asyncssh.ChannelOpenError as refusal:
            if refusal.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                return FleetError(
                    failures.FORWARDING_DISABLED,
                    "sshd does not let us reach the agent's socket: forwarding is switched off",
                    hint="DisableForwarding or AllowStreamLocalForwarding in its sshd_config must allow it",
                    host=self._host,
                )
        except (TimeoutError, *_LOST) as lost:
            return failures.connection_lost(self._host, str(lost) or "no answer")
        return failures.no_socket(self._host, path, f"the socket refuses us ({error.reason})")


class SshStream:
    """A channel to a remote unix socket as a ByteStream."""

    def __init__(self, host: str, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int) -> bytes:
        try:
            return await on_ssh_loop(self._reader.read(limit))
        except _LOST as error:
            raise failures.connection_lost(self._host, str(error)) from error

    async def write(self, data: bytes) -> None:
        try:
            await on_ssh_loop(self._write(data))
        except _LOST as error:
            raise failures.connection_lost(self._host, str(error)) from error

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        await on_ssh_loop(self._close())

    async def _close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()
        except (TimeoutError, *_LOST):
            return  # a channel of a dead connection has nobody left to close it with


def _is_lost(connection: asyncssh.SSHClientConnection, error: asyncssh.ChannelOpenError) -> bool:
    """asyncssh says "SSH connection closed" through the channel's error before `is_closed` does."""
    return connection.is_closed() or error.reason == "SSH connection closed"


def _on_loop_of_caller(on_progress: Callable[[int, int], None] | None) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    loop = asyncio.get_running_loop()

    def report(done: int, total: int) -> None:
        loop.call_soon_threadsafe(on_progress, done, total)

    return report
