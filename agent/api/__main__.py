"""`python -m agent.api CONFIG.json`: one gateway process, until SIGTERM. Its agent may come and go meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette

from agent.api.gateway import Gateway
from agent.api.gateway_app import client_app, socket_app
from agent.api.listen import listen_tcp, listen_unix, name_of
from agent.errors import FleetError
from agent.wire.gateway import GatewayConfig

log = logging.getLogger("agent.api")

STOP_TIMEOUT_S = 3
"""For clients to read their last line; the supervisor kills after five."""
KEEP_ALIVE_S = 75


def main() -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # They log every report to the agent, and every start and stop of what is ours to start and stop.
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if len(sys.argv) != 2:
        log.error("usage: python -m agent.api CONFIG.json")
        return 3
    try:
        config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=GatewayConfig)
    except (OSError, msgspec.DecodeError) as error:
        log.error("cannot read %s: %s", sys.argv[1], error)
        return 3
    try:
        with listen_tcp(config) as tcp, listen_unix(config) as unix:
            asyncio.run(_serve(config, tcp, unix))
    except FleetError as error:
        log.error("%s: %s", error.code, error)
        return 3 if error.code.startswith("E1") else 1
    return 0


class _JsonLines(logging.Formatter):
    """One JSON object a line: the event's name and its fields, as ranks log too."""

    _own_fields = frozenset(vars(logging.makeLogRecord({}))) | {"message"}

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"at": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {key: value for key, value in vars(record).items() if key not in self._own_fields}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Stopped(Exception):
    """Ends the task group, and with it what still runs in the background."""


class _Server(uvicorn.Server):
    """Signals are ours: streams must get their error before the server stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(config: GatewayConfig, tcp: socket.socket, unix: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            gateway = Gateway(config, listen=name_of(tcp), tasks=tasks)
            servers = [_server(client_app(gateway)), _server(socket_app(gateway))]
            serving = [
                tasks.create_task(server.serve(sockets=[each]))
                for server, each in zip(servers, (tcp, unix), strict=True)
            ]
            log.info("gateway listens", extra={"listen": name_of(tcp)})
            await stop.wait()
            gateway.stop()
            for server in servers:
                server.should_exit = True
            await asyncio.wait(serving)
            raise _Stopped
    except* _Stopped:
        log.info("gateway stopped")


def _server(app: Starlette) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
