"""Ranks as real processes: spawned, linked over their control sockets, driven over TLS as a gateway does."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import msgspec

from agent.engine.executor import kv_blocks
from agent.wire.framing import decode, receive_frame, send_frame
from agent.wire.rank import (
    GetStatus,
    LinkRank,
    OpenStep,
    RankConfig,
    RankMessage,
    RankRequest,
    RankStatus,
    SampledToken,
    SequenceSlice,
    Step,
    StepDone,
    StepOpened,
    StopRank,
    TlsFiles,
)
from tests.agent.engine.blocks import Blocks
from tests.agent.engine.certificates import client_context

DEADLINE_S = 60.0
POLL_S = 0.02


class ProcessRank:
    """One `python -m agent.engine`, and the supervisor's end of its control socket."""

    def __init__(self, config: RankConfig, folder: Path) -> None:
        self.config = config
        path = folder / f"{config.rank_id}.json"
        path.write_bytes(msgspec.json.encode(config))
        self._log_path = folder / f"{config.rank_id}.log"
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent.engine", str(path)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def ask(self, request: RankRequest, *, timeout_s: float = DEADLINE_S) -> RankStatus:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(self.config.socket)
            send_frame(connection, request)
            status = decode(receive_frame(connection), RankStatus)
        assert isinstance(status, RankStatus)
        return status

    def wait_until(self, holds: Callable[[RankStatus], bool], *, timeout_s: float = DEADLINE_S) -> RankStatus:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                status = self.ask(GetStatus())
                if holds(status):
                    return status
            except OSError:  # it does not listen yet
                status = None
            assert self.process.poll() is None, f"{self.config.rank_id} left:\n{self.log}"
            assert time.monotonic() < deadline, f"{self.config.rank_id}: {status}\n{self.log}"
            time.sleep(POLL_S)

    def wait_loaded(self) -> RankStatus:
        return self.wait_until(lambda status: status.state != "loading")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)

    def stop(self) -> int:
        self.ask(StopRank())
        return self.process.wait(10)

    def end(self) -> None:
        """Whatever state it is in: gone afterwards."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)


class Gateway:
    """The gateway's end of one rank's step channel."""

    def __init__(
        self,
        rank: ProcessRank,
        tls: TlsFiles,
        *,
        generation: int,
        deployment: str = "chat",
        with_certificate: bool = True,
    ) -> None:
        port = rank.ask(GetStatus()).step_port
        plain = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = client_context(tls, with_certificate=with_certificate)
        self._connection: ssl.SSLSocket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        try:
            self.send(OpenStep(deployment=deployment, generation=generation, gateway="host01"))
            self.hello: RankMessage = self.receive()
        except BaseException:
            self.close()
            raise

    @property
    def server_serial(self) -> str:
        certificate = self._connection.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])

    def send(self, message: OpenStep | Step) -> None:
        send_frame(self._connection, message)

    def receive(self, *, timeout_s: float = DEADLINE_S) -> RankMessage:
        self._connection.settimeout(timeout_s)
        message: RankMessage = decode(receive_frame(self._connection), RankMessage)
        return message

    def close(self) -> None:
        self._connection.close()


class ProcessReplica:
    """A gateway to every rank of a replica; `leader` is the rank that answers."""

    def __init__(self, ranks: Sequence[ProcessRank], tls: TlsFiles, *, generation: int, leader: str) -> None:
        self.gateways = {rank.config.rank_id: Gateway(rank, tls, generation=generation) for rank in ranks}
        self._leader = leader
        self._next_step = 1
        self._blocks = Blocks(kv_blocks(ranks[0].config))
        for gateway in self.gateways.values():
            assert isinstance(gateway.hello, StepOpened), gateway.hello

    def put(self, slices: list[SequenceSlice]) -> None:
        step = Step(step_id=self._next_step, slices=[self._blocks.fill(piece) for piece in slices])
        self._next_step += 1
        for gateway in self.gateways.values():
            gateway.send(step)

    def step(self, slices: list[SequenceSlice]) -> list[SampledToken]:
        self.put(slices)
        done = self.gateways[self._leader].receive()
        assert isinstance(done, StepDone), done
        return done.tokens

    def generate(self, prompt: list[int], count: int, *, slot: int = 0) -> list[int]:
        made: list[int] = []
        tokens, start = prompt, 0
        while len(made) < count:
            (sampled,) = self.step([SequenceSlice(slot=slot, start=start, tokens=tokens, samples=True)])
            start += len(tokens)
            tokens = [sampled.token]
            made += tokens
        return made

    def __enter__(self) -> ProcessReplica:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for gateway in self.gateways.values():
            gateway.close()


@contextmanager
def start_ranks(configs: Sequence[RankConfig], folder: Path) -> Iterator[list[ProcessRank]]:
    """Started together, waited for until none is loading, gone at the end."""
    with ExitStack() as stack:
        ranks = []
        for config in configs:
            ranks.append(ProcessRank(config, folder))
            stack.callback(ranks[-1].end)
        for rank in ranks:
            rank.wait_loaded()
        yield ranks


def link(ranks: Sequence[ProcessRank], links: dict[str, LinkRank]) -> dict[str, RankStatus]:
    """Ask every rank at once, as their supervisors do, and wait for all."""
    statuses: dict[str, RankStatus] = {}

    def ask(rank: ProcessRank) -> None:
        statuses[rank.config.rank_id] = rank.ask(links[rank.config.rank_id])

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert set(statuses) == {rank.config.rank_id for rank in ranks}
    return statuses
