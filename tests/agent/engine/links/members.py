"""Members of a link for tests: as threads of this process, or one as a process of its own that takes orders.

`python -m tests.agent.engine.links.members FOLDER` reads orders from stdin and answers each with a line.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec
import torch
from torch import Tensor

from agent.engine.links.carrier import STEP_TIMEOUT_S, Carrier
from agent.engine.links.gloo import GlooCarrier
from agent.engine.links.meeting import Meeting
from agent.engine.links.nccl import NcclCarrier
from agent.engine.links.stream import StreamCarrier
from agent.engine.store import AgentStore
from agent.planner.carriers import CarrierKind
from agent.wire.rank import TlsFiles

Result = TypeVar("Result")
Member = TypeVar("Member")
CPU = torch.device("cpu")
MEET_LIMIT_S = 20.0
ORDER_LIMIT_S = 60.0


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """All that a member needs to meet the others."""

    folder: str
    kind: CarrierKind
    prefix: str
    index: int
    size: int
    tls: TlsFiles
    host: str = "host01"
    cluster: str = "lab"
    step_timeout_s: float = STEP_TIMEOUT_S
    meet_limit_s: float = MEET_LIMIT_S
    device: str = "cpu"
    address: str = "127.0.0.1"


def store_of(seat: Seat) -> AgentStore:
    return AgentStore(
        agent_socket=f"{seat.folder}/agent.sock",
        controller="host01",
        prefix=seat.prefix,
        deadline=time.monotonic() + seat.meet_limit_s,
    )


def meeting_of(seat: Seat) -> Meeting:
    assert seat.kind in ("tls", "tcp", "unix")
    return Meeting(
        store=store_of(seat),
        index=seat.index,
        size=seat.size,
        kind=seat.kind,
        address=seat.address,
        cluster=seat.cluster,
        host=seat.host,
        tls=seat.tls,
        deadline=time.monotonic() + seat.meet_limit_s,
    )


def meet(seat: Seat) -> Carrier:
    """Blocks until every member does the same."""
    match seat.kind:
        case "tls" | "tcp" | "unix":
            return StreamCarrier(
                meeting_of(seat).meet(),
                index=seat.index,
                size=seat.size,
                device=torch.device(seat.device),
                timeout_s=seat.step_timeout_s,
            )
        case "gloo":
            return GlooCarrier(
                store=store_of(seat),
                index=seat.index,
                size=seat.size,
                address="127.0.0.1",
                timeout_s=seat.meet_limit_s,
                device=torch.device(seat.device),
                except_port=0,
                step_timeout_s=seat.step_timeout_s,
            )
        case "nccl":
            device = torch.device("cuda", seat.index)
            return NcclCarrier(
                store=store_of(seat), index=seat.index, size=seat.size, timeout_s=seat.meet_limit_s, device=device
            )
        case _:
            assert_never(seat.kind)


def meet_all(seats: Sequence[Seat]) -> list[Carrier]:
    with ThreadPoolExecutor(len(seats)) as pool:
        return list(pool.map(meet, seats))


def on_all(members: Sequence[Member], act: Callable[[int, Member], Result]) -> list[Result]:
    """What each member's own thread made of it, in order."""
    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(act, range(len(members)), members))


class MemberProcess:
    """A member that can be killed or stopped. `ask` waits for the answer, `begin` does not."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.engine.links.members"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[4],
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, order: str, argument: Seat | int | None = None) -> None:
        assert self.process.stdin is not None
        text = msgspec.json.encode(argument).decode() if argument is not None else ""
        self.process.stdin.write(f"{order} {text}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        return self._answers.get(timeout=ORDER_LIMIT_S)

    def ask(self, order: str, argument: Seat | int | None = None) -> str:
        self.begin(order, argument)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line.strip())


def numbers(count: int, *, seed: int, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(kind)


def _take_orders() -> None:
    torch.set_num_threads(1)
    carriers: dict[str, Carrier] = {}
    last = ""
    for line in sys.stdin:
        order, _, argument = line.strip().partition(" ")
        try:
            if order == "meet":
                seat = msgspec.json.decode(argument, type=Seat)
                last = seat.prefix
                carriers[last] = meet(seat)
            elif order == "send":
                carriers[last].send(numbers(int(argument), seed=1), 0).wait()
            elif order == "receive":
                carriers[last].receive((int(argument),), torch.float32, 0)
            elif order == "sum":
                carriers[last].all_reduce(numbers(int(argument), seed=1))
            elif order == "close":
                carriers.pop(last).close()
        except RuntimeError as error:
            print(f"broken: {error}".splitlines()[0], flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    _take_orders()
