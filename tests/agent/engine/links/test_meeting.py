"""Who may link and who is refused: certificates, clusters, generations, users."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch

from agent.engine.links.meeting import Greeting, Whereabouts
from agent.engine.links.stream import StreamCarrier
from agent.errors import FleetError
from agent.planner.carriers import CarrierKind
from agent.wire.framing import send_frame
from agent.wire.rank import TlsFiles
from tests.agent.engine.certificates import Authority
from tests.agent.engine.links.members import CPU, Seat, meet, meet_all, meeting_of, store_of
from tests.agent.engine.rendezvous import RendezvousServer, serve_rendezvous

LIMIT_S = 3.0
HANG_S = 20.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> TlsFiles:
    return authority.leaf("leaf")


@pytest.fixture
def store(folder: Path) -> Iterator[RendezvousServer]:
    with serve_rendezvous(folder / "agent.sock") as server:
        yield server


@pytest.fixture
def seat(folder: Path, tls: TlsFiles, store: RendezvousServer) -> Callable[..., Seat]:
    def make(
        index: int, *, kind: CarrierKind = "tls", tls: TlsFiles = tls, host: str = "host01", generation: int = 1
    ) -> Seat:
        prefix = f"chat/{generation}/link"
        return Seat(
            folder=str(folder),
            kind=kind,
            prefix=prefix,
            index=index,
            size=2,
            tls=tls,
            host=host,
            meet_limit_s=HANG_S,
        )

    return make


def refusals(*pairs: tuple[Seat, Seat]) -> list[tuple[str, str]]:
    """What the two members of each pair say when they do not come together. All pairs at once: they wait."""

    def act(seat: Seat) -> str:
        with pytest.raises((RuntimeError, FleetError)) as caught:
            meet(seat)
        return str(caught.value)

    seats = [_impatient(seat) for pair in pairs for seat in pair]
    with ThreadPoolExecutor(len(seats)) as pool:
        said = list(pool.map(act, seats))
    return list(zip(said[::2], said[1::2], strict=True))


def test_a_leaf_of_another_ca_is_refused_by_both_sides(
    seat: Callable[..., Seat], tmp_path: Path, tls: TlsFiles
) -> None:
    other = Authority(tmp_path, name="other").leaf("stranger")
    # one that believes in our CA, but shows the other's leaf
    mixed = TlsFiles(ca=tls.ca, cert=other.cert, key=other.key)
    stranger, half = refusals(
        (seat(0), seat(1, tls=other)), (seat(0, generation=2), seat(1, tls=mixed, generation=2))
    )
    assert "its certificate was refused: " in stranger[1]
    assert "member 1 did not connect in time; a connection was refused: TLS: tlsv1 alert unknown ca" in stranger[0]
    assert "its certificate was refused: " in half[0]
    assert "unknown ca" in half[1] or "closed the connection" in half[1]


def test_another_clusters_or_another_hosts_leaf_is_refused(seat: Callable[..., Seat], authority: Authority) -> None:
    elsewhere = authority.leaf("elsewhere", cluster="other")
    client, server, host = refusals(
        (seat(0), seat(1, tls=elsewhere)),
        (seat(0, tls=elsewhere, generation=2), seat(1, generation=2)),
        (seat(0, generation=3), seat(1, host="host02", generation=3)),
    )
    wrong_cluster = "its certificate names spiffe://other/agent/host01, not spiffe://lab/agent/host01"
    assert wrong_cluster in client[0]
    assert "refused the connection" in client[1] or "closed the connection" in client[1]
    assert wrong_cluster in server[1]
    assert "its certificate names spiffe://lab/agent/host01, not spiffe://lab/agent/host02" in host[0]


def test_hosts_of_one_cluster_link(seat: Callable[..., Seat], authority: Authority) -> None:
    other = authority.leaf("host02", host="host02")
    first, second = meet_all([seat(0), seat(1, tls=other, host="host02")])
    first.send(torch.arange(3), 1).wait()
    assert second.receive((3,), torch.int64, 0).tolist() == [0, 1, 2]
    first.close()
    second.close()


def test_both_ends_of_a_link_have_their_hosts_own_addresses(seat: Callable[..., Seat]) -> None:
    """A host with several networks sends over the one that the inventory names, as it listens there."""
    seats = [
        msgspec.structs.replace(seat(index), address=address)
        for index, address in enumerate(("127.0.0.2", "127.0.0.3"))
    ]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda each: meeting_of(each).meet(), seats)
    for connection in (*second.incoming.values(), *second.outgoing.values()):
        assert (connection.getsockname()[0], connection.getpeername()[0]) == ("127.0.0.3", "127.0.0.2")
    for connection in (*first.incoming.values(), *first.outgoing.values()):
        assert connection.getpeername()[0] == "127.0.0.3"
        connection.close()
    for connection in (*second.incoming.values(), *second.outgoing.values()):
        connection.close()


@pytest.mark.parametrize("kind", ["tls", "tcp", "unix"])
def test_a_connection_of_another_generation_is_refused_and_the_right_one_still_comes(
    seat: Callable[..., Seat], store: RendezvousServer, kind: CarrierKind
) -> None:
    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(meet, seat(0, kind=kind, generation=2))
        published = _published(store, "chat/2/link/0")
        # a member of generation 1 that kept an address, which is now that of generation 2's member
        stale = msgspec.structs.replace(published, token="0" * 32)
        store.values["chat/1/link/0"] = msgspec.msgpack.encode(stale)
        with pytest.raises(RuntimeError, match=r"host01 refused the connection|closed the connection"):
            meet(seat(1, kind=kind, generation=1))
        right = meet(seat(1, kind=kind, generation=2))
        carrier = listening.result(HANG_S)
    right.send(torch.ones(2), 0).wait()
    assert carrier.receive((2,), torch.float32, 1).tolist() == [1, 1]
    carrier.close()
    right.close()


def test_strangers_that_say_nothing_or_nonsense_do_not_stop_a_meeting(
    seat: Callable[..., Seat], store: RendezvousServer, tls: TlsFiles
) -> None:
    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(meet, seat(0))
        published = _published(store, "chat/1/link/0")
        for opening in (b"", b"GET / HTTP/1.1\r\n\r\n"):
            stranger = socket.create_connection((published.address, published.port), timeout=HANG_S)
            stranger.sendall(opening)
            stranger.close()
        with contextlib.closing(_tls_socket(published, tls, ssl.TLSVersion.TLSv1_3)) as repeated:
            send_frame(repeated, Greeting(host="host01", from_index=7, sends=True, token=published.token))
            assert repeated.recv(1) == b""  # a seat that does not exist
        right = meet(seat(1))
        carrier = listening.result(HANG_S)
    carrier.close()
    right.close()


def test_nothing_older_than_tls_1_3_and_nobody_without_a_certificate(
    seat: Callable[..., Seat], store: RendezvousServer, tls: TlsFiles
) -> None:
    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(meet, _impatient(seat(0)))
        published = _published(store, "chat/1/link/0")
        with pytest.raises(OSError, match=r"PROTOCOL_VERSION|alert protocol version"):
            _tls_socket(published, tls, ssl.TLSVersion.TLSv1_2)
        anonymous = _tls_socket(published, TlsFiles(ca=tls.ca, cert="", key=""), ssl.TLSVersion.TLSv1_3)
        with (
            contextlib.closing(anonymous),
            pytest.raises(OSError, match=r"CERTIFICATE_REQUIRED|certificate required"),
        ):
            anonymous.recv(1)
        with pytest.raises(RuntimeError, match="a connection was refused: TLS: peer did not return a certificate"):
            listening.result(HANG_S)


def test_what_crosses_a_tls_link_cannot_be_read_on_the_way(
    seat: Callable[..., Seat], store: RendezvousServer
) -> None:
    marker = b"the hidden state of a secret prompt" * 8
    with ThreadPoolExecutor(2) as pool:
        receiving = pool.submit(meet, seat(0))
        published = _published(store, "chat/1/link/0")
        with _recording_relay(published) as (port, seen):
            relayed = msgspec.structs.replace(published, port=port)
            store.values["chat/1/link/0"] = msgspec.msgpack.encode(relayed)
            sender, receiver = meet(seat(1)), receiving.result(HANG_S)
            sender.send(torch.frombuffer(bytearray(marker), dtype=torch.uint8), 0).wait()
            assert bytes(receiver.receive((len(marker),), torch.uint8, 1).tolist()) == marker
            sender.close()
            receiver.close()
    assert len(seen) > len(marker)
    assert marker[:16] not in bytes(seen)


def test_another_user_of_the_host_is_refused(seat: Callable[..., Seat], store: RendezvousServer) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can start a process of another user")
    with ThreadPoolExecutor(1) as pool:
        listening: Future[object] = pool.submit(meet, _impatient(seat(0, kind="unix")))
        published = _published(store, "chat/1/link/0")
        script = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
            "s.connect(bytes.fromhex(sys.argv[1]));"
            "sys.exit(len(s.recv(1)))"
        )
        name = published.address.encode().hex()
        subprocess.run([sys.executable, "-c", script, name], check=True, timeout=HANG_S)
        with pytest.raises(RuntimeError, match="of user 65534 is none of ours"):
            listening.result(HANG_S)


@pytest.mark.parametrize("index", [0, 1])
def test_a_meeting_can_be_aborted(seat: Callable[..., Seat], store: RendezvousServer, index: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if index == 1:  # it connects to something that never shakes hands
            whereabouts = Whereabouts(host="host01", address="127.0.0.1", port=silent.getsockname()[1])
            store_of(seat(1)).set("0", msgspec.msgpack.encode(whereabouts))
        meeting = meeting_of(msgspec.structs.replace(seat(index), meet_limit_s=60.0))
        timer = threading.Timer(0.2, meeting.abort)
        timer.start()
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match="linking was aborted"):
            meeting.meet()
        assert time.monotonic() - begun < HANG_S
        timer.join()


def test_certificates_that_are_missing_are_named(seat: Callable[..., Seat]) -> None:
    missing = TlsFiles(ca="/nowhere/ca.pem", cert="/nowhere/host.pem", key="/nowhere/host.key")
    with pytest.raises(FleetError, match=r"certificates /nowhere/host\.pem") as caught:
        StreamCarrier(meeting_of(seat(0, tls=missing)).meet(), index=0, size=2, device=CPU)
    assert caught.value.code == "E808"


def _impatient(seat: Seat) -> Seat:
    """One that will wait in vain."""
    return msgspec.structs.replace(seat, meet_limit_s=LIMIT_S)


def _published(store: RendezvousServer, key: str) -> Whereabouts:
    with store.changed:
        assert store.changed.wait_for(lambda: key in store.values, timeout=HANG_S)
        return msgspec.msgpack.decode(store.values[key], type=Whereabouts)


def _tls_socket(published: Whereabouts, tls: TlsFiles, version: ssl.TLSVersion) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = version
    context.load_verify_locations(tls.ca)
    if tls.cert:
        context.load_cert_chain(tls.cert, tls.key)
    plain = socket.create_connection((published.address, published.port), timeout=HANG_S)
    return context.wrap_socket(plain)


@contextlib.contextmanager
def _recording_relay(published: Whereabouts) -> Iterator[tuple[int, bytearray]]:
    """A port that passes everything on to the published one, and what passed."""
    seen = bytearray()
    ends: list[socket.socket] = []

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the link is closed
            while data := source.recv(65536):
                seen.extend(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed below
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((published.address, published.port))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    copier = threading.Thread(target=copy, args=pair, daemon=True)
                    copier.start()
                    threads.append(copier)

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listener.getsockname()[1], seen
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(HANG_S)
        for thread in threads:
            thread.join(HANG_S)
        for end in ends:
            end.close()
