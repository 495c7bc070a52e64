"""The TLS plane between agents: a real agent process, and the client that agents use."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agent.api.cluster_client import ClusterClient
from agent.api.planes import serve_cluster
from agent.api.tls import client_context, server_context, watch_leaf
from agent.errors import FleetError
from agent.facts.cluster import HostFacts
from agent.wire.agent import (
    ByteRange,
    Commit,
    DeploymentRecord,
    Done,
    Forget,
    Handshake,
    HostAddress,
    InstructionReply,
    ModelHolding,
    Prepare,
    RangeRequest,
)
from agent.wire.rank import TlsFiles
from odctl.pki.authority import LeafIdentity
from tests.agent.daemon import (
    CLUSTER,
    Daemon,
    authority,
    free_port,
    running_daemon,
    write_leaf,
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def beta(daemon: Daemon) -> TlsFiles:
    """The leaf of another host of the same cluster."""
    return write_leaf(authority(daemon.prefix / "authority"), daemon.prefix / "beta", host="beta")


@pytest.fixture
async def client(beta: TlsFiles) -> AsyncIterator[ClusterClient]:
    client = ClusterClient(beta, cluster=CLUSTER)
    yield client
    await client.close()


async def refused(client: ClusterClient, address: HostAddress) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await client.call(address, "/v1/handshake", None, Handshake, timeout_s=5)
    await client.close()
    assert caught.value.host == address.host
    return caught.value


async def test_an_agent_of_the_cluster_is_answered(client: ClusterClient, daemon: Daemon) -> None:
    handshake = await client.call(daemon.address, "/v1/handshake", None, Handshake, timeout_s=5)
    assert (handshake.host, handshake.pid) == ("alpha", daemon.process.pid)
    facts = await client.call(daemon.address, "/v1/facts", None, HostFacts, timeout_s=5)
    assert facts.name == "alpha"
    assert (await client.heartbeat(daemon.address, controller="beta", timeout_s=5)).host == "alpha"


async def test_what_the_agent_refuses_arrives_as_its_own_error(client: ClusterClient, daemon: Daemon) -> None:
    request = RangeRequest(
        digest="0" * 64, ranges=[ByteRange("model.safetensors", offset=0, length=8, stride=8, count=1)]
    )
    with pytest.raises(FleetError) as caught:
        async with client.ranges(daemon.address, request):
            raise AssertionError("a model that nobody holds was served")
    assert caught.value.code.startswith("E7")
    assert caught.value.host == "alpha"


async def test_an_operators_routes_are_not_on_the_cluster_plane(client: ClusterClient, daemon: Daemon) -> None:
    for route in ("/v1/models", "/v1/samples", "/v1/events", "/v1/logs", "/metrics"):
        with pytest.raises(FleetError, match="Not Found"):
            await client.call(daemon.address, route, None, tuple[ModelHolding, ...], timeout_s=5)
    with pytest.raises(FleetError, match="Not Found"):
        await client.call(daemon.address, "/v1/apply", Done(), Done, timeout_s=5)


async def test_an_instruction_crosses_and_so_does_its_refusal(client: ClusterClient, daemon: Daemon) -> None:
    record = DeploymentRecord(
        name="chat", generation=3, plan_hash="abc", controller="alpha", members=(daemon.address,)
    )
    assert await client.instruct(daemon.address, Commit(record=record), timeout_s=5) == InstructionReply()
    assert daemon.get("/v1/deployments", tuple[DeploymentRecord, ...]) == (record,)
    stale = Prepare(
        deployment="chat", expected_generation=2, generation=3, holder="me", controller="alpha", lease_s=1.0
    )
    with pytest.raises(FleetError) as caught:
        await client.instruct(daemon.address, stale, timeout_s=5)
    assert (caught.value.code, caught.value.host) == ("E401", "alpha")
    await client.instruct(daemon.address, Forget(deployment="chat"), timeout_s=5)
    assert daemon.get("/v1/deployments", tuple[DeploymentRecord, ...]) == ()


def test_no_certificate_no_answer(daemon: Daemon) -> None:
    context = ssl.create_default_context(cafile=daemon.tls.ca)
    context.check_hostname = False
    assert_dropped(context, daemon)


def test_tls_1_2_is_not_spoken(daemon: Daemon, beta: TlsFiles) -> None:
    context = client_context(beta)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert_dropped(context, daemon)


def assert_dropped(context: ssl.SSLContext, daemon: Daemon) -> None:
    """With TLS 1.3 a refused client learns of it only when it reads."""
    with socket.create_connection((daemon.address.address, daemon.address.port), timeout=5) as plain:
        try:
            with context.wrap_socket(plain) as connection:
                connection.sendall(b"GET /v1/handshake HTTP/1.1\r\nhost: alpha\r\n\r\n")
                assert connection.recv(100) == b""
        except (ssl.SSLError, ConnectionError):
            return


async def test_a_leaf_of_another_authority_is_refused_at_both_ends(daemon: Daemon, tmp_path: Path) -> None:
    foreign = write_leaf(authority(tmp_path / "foreign"), tmp_path, host="beta")
    error = await refused(ClusterClient(foreign, cluster=CLUSTER), daemon.address)
    assert error.code == "E206"
    assert "CERTIFICATE_VERIFY_FAILED" in error.message
    assert "bootstrap it again" in error.hint
    # The same leaf, shown by a client that believes our authority: the server itself must refuse it.
    believing = msgspec.structs.replace(foreign, ca=daemon.tls.ca)
    error = await refused(ClusterClient(believing, cluster=CLUSTER), daemon.address)
    assert error.code == "E206"


async def test_a_server_with_another_hosts_name_is_not_believed(client: ClusterClient, daemon: Daemon) -> None:
    gamma = msgspec.structs.replace(daemon.address, host="gamma")
    error = await refused(client, gamma)
    assert (error.code, error.host) == ("E206", "gamma")
    assert "gamma.lab.odctl" in error.message


class Visitor(LeafIdentity, frozen=True, kw_only=True):
    @property
    def uri(self) -> str:
        return f"spiffe://{self.cluster}/visitor/{self.host}"


async def test_a_leaf_of_our_authority_that_names_no_agent_is_dropped(daemon: Daemon, tmp_path: Path) -> None:
    visitor = Visitor(cluster=CLUSTER, host="visitor", cluster_address="127.0.0.1")
    files = write_leaf(authority(daemon.prefix / "authority"), tmp_path, host="visitor", identity=visitor)
    error = await refused(ClusterClient(files, cluster=CLUSTER), daemon.address)
    assert "refused our certificate" in error.hint


async def test_an_agent_that_is_not_there_is_named(client: ClusterClient) -> None:
    address = HostAddress(host="gamma", address="127.0.0.1", port=free_port())
    error = await refused(client, address)
    assert error.code == "E206"
    assert f"127.0.0.1:{address.port} cannot be reached" in error.message


async def test_an_agent_that_does_not_answer_is_given_up_in_time(client: ClusterClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = HostAddress(host="gamma", address="127.0.0.1", port=silent.getsockname()[1])
        with pytest.raises(FleetError, match=r"does not answer within 0\.3 s") as caught:
            await client.call(address, "/v1/handshake", None, Handshake, timeout_s=0.3)
    assert caught.value.code == "E206"


async def test_ranges_are_streamed_with_the_holders_hash(beta: TlsFiles, client: ClusterClient) -> None:
    blocks = [bytes([number]) * 100_000 for number in range(20)]
    received = b""
    async with serving(_ranges_app(blocks), beta) as address, client.ranges(address, RANGES) as (sha256, chunks):
        async for chunk in chunks:
            received += chunk
    assert sha256 == "the-hash"
    assert received == b"".join(blocks)


async def test_a_renewed_leaf_is_shown_without_a_restart(tmp_path: Path) -> None:
    """1. A server with a leaf. 2. Its key is replaced, but not yet the leaf: the pair is not taken up. 3. The leaf
    follows: new connections see its serial; the context is the old one."""
    issuer = authority(tmp_path / "authority")
    files = write_leaf(issuer, tmp_path / "served", host="beta")
    context = server_context(files)
    visitor = client_context(write_leaf(issuer, tmp_path / "visitor", host="alpha"))
    fresh = write_leaf(issuer, tmp_path / "fresh", host="beta")

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server, asyncio.timeout(20), asyncio.TaskGroup() as group:
        watch = group.create_task(watch_leaf([context], files, interval_s=0.05))
        before = await shown_serial(visitor, port)
        copy(fresh.key, files.key)
        half_until = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < half_until:
            assert await shown_serial(visitor, port) == before
        copy(fresh.cert, files.cert)
        while await shown_serial(visitor, port) == before:
            pass
        watch.cancel()


async def shown_serial(context: ssl.SSLContext, port: int) -> str:
    """Serial number of the leaf that the server on this port shows."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=f"beta.{CLUSTER}.odctl"
    )
    certificate: Any = writer.get_extra_info("ssl_object").getpeercert()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    return str(certificate["serialNumber"])


def copy(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())


def test_missing_certificates_are_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        server_context(TlsFiles(ca=str(tmp_path / "ca"), cert=str(tmp_path / "c"), key=str(tmp_path / "k")))
    assert caught.value.code == "E208"
    assert "bootstrap" in caught.value.hint


async def test_a_port_that_is_taken_is_named(beta: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FleetError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            await serve_cluster(Starlette(), "127.0.0.1", port, beta, cluster=CLUSTER)
    assert caught.value.code == "E902"


RANGES = RangeRequest(digest="d", ranges=[])


def _ranges_app(blocks: list[bytes]) -> Starlette:
    async def ranges(_request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for block in blocks:
                yield block

        return StreamingResponse(chunks(), headers={"x-sha256": "the-hash"})

    return Starlette(routes=[Route("/v1/ranges", ranges, methods=["POST"])])


@contextlib.asynccontextmanager
async def serving(app: Starlette, tls: TlsFiles) -> AsyncIterator[HostAddress]:
    """The app on the cluster plane, as host beta, within this event loop."""
    port = free_port()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve_cluster(app, "127.0.0.1", port, tls, cluster=CLUSTER))
        async with asyncio.timeout(5):
            while not await is_listening(port):
                pass
        yield HostAddress(host="beta", address="127.0.0.1", port=port)
        task.cancel()


async def is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
