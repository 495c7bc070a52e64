from __future__ import annotations

import asyncio
import socket

import pytest

from agent.api.listen import listen_tcp
from agent.errors import FleetError
from agent.wire.gateway import GatewayConfig
from agent.wire.rank import TlsFiles


def config(listen: str) -> GatewayConfig:
    tls = TlsFiles(ca="", cert="", key="")
    return GatewayConfig(cluster="c", host="h", listen=listen, socket="", agent_socket="", tls=tls)


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_the_first_piece_of_a_stream_does_not_wait_for_an_acknowledgement(address: str) -> None:
    accepted: list[socket.socket] = []
    has_come = asyncio.Event()

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport.get_extra_info("socket"))
            has_come.set()

    with listen_tcp(config(f"{address}:0")) as listener:
        server = await asyncio.get_running_loop().create_server(Client, sock=listener)
        async with server:
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            await has_come.wait()
            assert accepted[0].proto == socket.IPPROTO_TCP
            assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()


def test_an_address_that_is_taken_is_named() -> None:
    with listen_tcp(config("127.0.0.1:0")) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(FleetError, match=f"cannot listen on 127.0.0.1:{port}"),
            listen_tcp(config(f"127.0.0.1:{port}")),
        ):
            pass
