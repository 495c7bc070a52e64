"""The Transport of a host on this very machine: processes in their own groups, files by copy, sockets as they are.

A lab host has a home directory of its own, and sees nothing of the operator's XDG directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from odctl.ssh import failures
from odctl.ssh.transport import ByteStream, RemoteResult

COPY_BLOCK_BYTES = 4 << 20
TERMINATE_S = 2.0
"""How long a stopped command may take to end before it is killed."""
CONNECT_S = 10.0


class LocalTransport:
    """`home` is the host's home directory and working directory; the operator's own when None."""

    def __init__(self, host: str, *, home: Path | None = None) -> None:
        self._host = host
        self._home = home or Path.home()
        self._environment = environment_for(home)

    @property
    def host(self) -> str:
        return self._host

    async def connect(self) -> None:
        try:
            await asyncio.to_thread(self._home.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise failures.unreachable(self._host, f"no home directory {self._home}: {error.strerror}") from error

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0, check: bool = False
    ) -> RemoteResult:
        await self.connect()
        try:
            process = await self._start(argv)
        except OSError as error:
            # A shell says 127 for an unknown command and 126 for one that it cannot execute; so do we.
            status = 127 if isinstance(error, FileNotFoundError) else 126
            result = RemoteResult(exit_status=status, stdout=b"", stderr=f"{argv[0]}: {error.strerror}\n".encode())
        else:
            result = await self._communicate(process, argv, stdin=stdin, timeout_s=timeout_s)
        if check and result.exit_status != 0:
            raise failures.command_failed(self._host, argv, result)
        return result

    async def _start(self, argv: Sequence[str]) -> asyncio.subprocess.Process:
        """Start it in a group of its own. Raises OSError.

        A cancelled `create_subprocess_exec` kills the leader alone, and then waits until its children close the
        pipes (CPython gh-119710). So it is left to finish, and the group is ended then.
        """
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self._home,
                env=self._environment,
                start_new_session=True,
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):  # it could not start: nothing to end
                await _end_group(await starting)
            raise

    async def _communicate(
        self, process: asyncio.subprocess.Process, argv: Sequence[str], *, stdin: bytes, timeout_s: float
    ) -> RemoteResult:
        try:
            async with asyncio.timeout(timeout_s):
                stdout, stderr = await process.communicate(stdin)
        except TimeoutError as error:
            raise failures.command_timed_out(self._host, argv, timeout_s) from error
        finally:
            if process.returncode is None:
                await _end_group(process)
        status = process.returncode
        assert status is not None, "communicate returned before the process ended"
        return RemoteResult(exit_status=128 - status if status < 0 else status, stdout=stdout, stderr=stderr)

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        await self.connect()
        await self._copy(source, self._path(target), mode=mode, on_progress=on_progress)

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        await self.connect()
        path = self._path(target)
        partial = _partial_of(path)
        try:
            await asyncio.to_thread(_write_file, partial, data, mode=mode)
            await asyncio.to_thread(partial.replace, path)
        except OSError as error:
            raise failures.copy_failed(self._host, target, error.strerror or str(error)) from error
        finally:
            _remove(partial)

    async def get(self, source: str, target: Path) -> None:
        await self._copy(self._path(source), target, mode=0o644, on_progress=None)

    async def open_unix(self, path: str) -> ByteStream:
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_unix_connection(self._path(path))
        except TimeoutError as error:
            raise failures.no_socket(self._host, path, f"no answer in {CONNECT_S:g} s") from error
        except OSError as error:
            raise failures.no_socket(self._host, path, error.strerror or str(error)) from error
        return LocalStream(self._host, reader, writer)

    async def close(self) -> None:
        """Nothing is held open."""

    def _path(self, path: str) -> Path:
        """As a login shell there would see it: `~/` and relative paths start at the host's home."""
        return self._home / path.removeprefix("~/")

    async def _copy(
        self, source: Path, target: Path, *, mode: int, on_progress: Callable[[int, int], None] | None
    ) -> None:
        """Block by block, so that a cancelled copy stops; the temporary name goes away in any case."""
        partial = _partial_of(target)
        try:
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            with (
                await asyncio.to_thread(source.open, "rb") as reader,
                await asyncio.to_thread(partial.open, "xb") as writer,
            ):
                total = os.fstat(reader.fileno()).st_size
                done = 0
                while block := await asyncio.to_thread(reader.read, COPY_BLOCK_BYTES):
                    await asyncio.to_thread(writer.write, block)
                    done += len(block)
                    if on_progress:
                        on_progress(done, total)
            partial.chmod(mode)
            await asyncio.to_thread(partial.replace, target)
        except OSError as error:
            reason = f"{error.strerror or error}: {error.filename or target}"
            raise failures.copy_failed(self._host, str(source), reason) from error
        finally:
            _remove(partial)


class LocalStream:
    """A unix socket of this machine as a ByteStream."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int) -> bytes:
        try:
            return await self._reader.read(limit)
        except OSError as error:
            raise failures.connection_lost(self._host, error.strerror or str(error)) from error

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise failures.connection_lost(self._host, error.strerror or str(error)) from error

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # the other side was first; closed is closed


def environment_for(home: Path | None) -> dict[str, str]:
    """The operator's environment; with a home of its own, without what points elsewhere."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if home is None:
        return environment
    kept = {name: value for name, value in environment.items() if not name.startswith(("XDG_", "ODCTL_"))}
    return kept | {"HOME": str(home), "PWD": str(home)}


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Ask the whole group to end, then make it; children that left the group are their own masters."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop)
        except ProcessLookupError:
            break
        try:
            async with asyncio.timeout(TERMINATE_S):
                await process.wait()
            break
        except TimeoutError:
            continue
    # The leader may be gone while a child of its group ignores SIGTERM.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    transport = process._transport  # type: ignore[attr-defined]
    transport.close()


def _partial_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")


def _remove(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return  # its folder is no folder: it was never made, and the caller already says why


def _write_file(path: Path, data: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
    path.chmod(mode)
