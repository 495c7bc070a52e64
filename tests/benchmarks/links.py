"""`make bench-links`: latency and all-reduce time per carrier, between processes of this machine.

Every member is a process with one thread. All carriers are linked at once and take turns, so that what else runs on
the machine meets them all alike. Gloo's own all_reduce, and the float32 that used to cross, are there to compare.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import torch
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions, ProcessGroupGloo

from agent.engine.links.carrier import Carrier, Group
from agent.engine.links.stream import StreamCarrier
from agent.planner.carriers import CarrierKind
from tests.agent.engine.certificates import Authority
from tests.agent.engine.links.members import MemberProcess, Seat, meet, store_of
from tests.agent.engine.rendezvous import serve_rendezvous
from tests.benchmarks.output import say

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- links: begin -->", "<!-- links: end -->"
KINDS: tuple[CarrierKind, ...] = ("tls", "tcp", "unix", "gloo")
SIZES = {"8 KiB": 8 << 10, "256 KiB": 256 << 10, "2 MiB": 2 << 20}
REPEATS = {8 << 10: 150, 64 << 10: 60, 256 << 10: 30, 2 << 20: 8}
BULK_BYTES = 64 << 20
DEATHS = 5

Times = dict[str, list[float]]
"""Seconds by what was measured."""


Sum = Callable[[Tensor], Tensor]
Note = Callable[[str, int, Callable[[], object]], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true", help="print the tables, leave the document alone")
    parser.add_argument("--seat", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seat:
        sys.stdout.buffer.write(msgspec.json.encode(_measure(_seat(options.seat), options.rounds)))
        return 0
    lines = [*_head(options.rounds)]
    with tempfile.TemporaryDirectory(prefix="odb-") as folder, serve_rendezvous(Path(folder) / "agent.sock"):
        tls = Authority(Path(folder)).leaf("leaf")
        seats = {
            size: [
                Seat(folder=folder, kind="tls", prefix=f"{size}", index=index, size=size, tls=tls)
                for index in range(size)
            ]
            for size in (2, 3)
        }
        times = {size: _run_members(seats[size], options.rounds) for size in (2, 3)}
        say("deaths")
        deaths = {kind: _deaths(seats[2][0], kind) for kind in KINDS}
    lines += [*_hop_table(times[2]), "", *_sum_table(times), "", *_way_table(times[3]), "", *_death_table(deaths)]
    table = "\n".join(lines)
    sys.stdout.write(table + "\n")
    if not options.dry_run:
        _write(table)
    return 0


# --- one member -------------------------------------------------------------------------------------------


def _measure(seat: Seat, rounds: int) -> Times:
    """What this member saw; all members go through the same turns."""
    torch.set_num_threads(1)
    carriers = {kind: _meet(seat, kind) for kind in KINDS}
    sums: dict[str, Sum] = {kind: carriers[kind].all_reduce for kind in KINDS}
    sums["gloo in float32"] = _in_float32(carriers["gloo"])
    sums["gloo's all_reduce"] = _own_all_reduce(seat)
    times: Times = {}

    def note(name: str, count: int, act: Callable[[], object], share: float = 1.0) -> None:
        act()
        for _ in range(count):
            begun = time.perf_counter()
            act()
            times.setdefault(name, []).append((time.perf_counter() - begun) * share)

    for _ in range(rounds):
        for num_bytes in SIZES.values():
            tensor = torch.ones(num_bytes // 2, dtype=torch.bfloat16)
            if seat.size == 2:
                for kind, carrier in carriers.items():
                    note(
                        f"hop {num_bytes} {kind}",
                        REPEATS[num_bytes],
                        _round_trip(carrier, tensor, seat),
                        share=0.5,
                    )
            for name, add in sums.items():
                note(f"sum {num_bytes} {name}", REPEATS[num_bytes], partial(add, tensor))
        if seat.size > 2:
            _note_ways(carriers, note)
    if seat.size == 2:
        for _ in range(rounds):
            for kind, carrier in carriers.items():
                note(f"bulk {kind}", 1, _one_way(carrier, torch.ones(BULK_BYTES, dtype=torch.uint8), seat))
    for carrier in carriers.values():
        carrier.all_reduce(torch.zeros(1))  # nobody leaves while another one still measures
    return times


def _note_ways(carriers: dict[CarrierKind, Carrier], note: Note) -> None:
    """Both ways of summing among more than two, at every size: what `DIRECT_SUM_BYTES` was set from."""
    for num_bytes, count in REPEATS.items():
        tensor = torch.ones(num_bytes // 2, dtype=torch.bfloat16)
        for kind in ("tls", "unix"):
            carrier = carriers[kind]
            assert isinstance(carrier, StreamCarrier)
            for way in (carrier._sum_of_all, carrier._sum_by_parts):
                note(f"way {num_bytes} {kind} {way.__name__}", count, partial(way, tensor))


def _round_trip(carrier: Carrier, message: Tensor, seat: Seat) -> Callable[[], None]:
    other = 1 - seat.index

    def act() -> None:
        if seat.index == 0:
            carrier.send(message, other).wait()
        carrier.receive(tuple(message.shape), message.dtype, other)
        if seat.index == 1:
            carrier.send(message, other).wait()

    return act


def _one_way(carrier: Carrier, message: Tensor, seat: Seat) -> Callable[[], None]:
    def act() -> None:
        if seat.index == 0:
            carrier.send(message, 1).wait()
            carrier.receive((1,), torch.uint8, 1)
        else:
            carrier.receive(tuple(message.shape), message.dtype, 0)
            carrier.send(torch.ones(1, dtype=torch.uint8), 0).wait()

    return act


def _in_float32(carrier: Carrier) -> Sum:
    """As reductions were done before: 16-bit partials cross as float32."""
    return lambda tensor: carrier.all_reduce(tensor.float()).to(tensor.dtype)


def _own_all_reduce(seat: Seat) -> Sum:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=60)
    named = msgspec.structs.replace(seat, prefix=f"{seat.prefix}/own")
    group = cast("Group", ProcessGroupGloo(store_of(named), seat.index, seat.size, options))

    def add(tensor: Tensor) -> Tensor:
        total = tensor.float()
        group.allreduce([total], AllreduceOptions()).wait()
        return total.to(tensor.dtype)

    return add


def _meet(seat: Seat, kind: CarrierKind) -> Carrier:
    return meet(msgspec.structs.replace(seat, prefix=f"{seat.prefix}/{kind}", kind=kind))


# --- all of them ------------------------------------------------------------------------------------------


def _run_members(seats: list[Seat], rounds: int) -> Times:
    say(f"{len(seats)} ranks")
    command = [sys.executable, "-m", "tests.benchmarks.links", "--rounds", str(rounds), "--seat"]
    members = [
        subprocess.Popen(
            [*command, msgspec.json.encode(seat).decode()],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for seat in seats
    ]
    answers = [member.communicate(timeout=600)[0] for member in members]
    return msgspec.json.decode(answers[0], type=Times)


def _seat(text: str) -> Seat:
    return msgspec.json.decode(text, type=Seat)


def _deaths(seat: Seat, kind: CarrierKind) -> list[float]:
    """Seconds from a SIGKILL to the exception of a rank that waits for the dead one."""
    seen = []
    for number in range(DEATHS):
        own = msgspec.structs.replace(seat, kind=kind, prefix=f"death/{kind}/{number}")
        member = MemberProcess()
        member.begin("meet", msgspec.structs.replace(own, index=1))
        carrier = meet(own)
        assert member.answer() == "done"
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.perf_counter())  # noqa: B023 - joined below
            member.process.send_signal(signal.SIGKILL)  # noqa: B023

        timer = threading.Timer(0.2, kill)
        timer.start()
        try:
            carrier.receive((8,), torch.float32, 1)
        except RuntimeError:
            raised = time.perf_counter()
        timer.join()
        seen.append(raised - killed[0])
        carrier.close()
        member.end()
    return seen


# --- tables -----------------------------------------------------------------------------------------------


def _head(rounds: int) -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return [
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; commit "
        f"{commit.stdout.strip() or 'unknown'}; {rounds} rounds, carriers in turn. Microseconds, median / least.",
        "",
    ]


def _hop_table(times: Times) -> Iterator[str]:
    yield f"| one way | {' | '.join(SIZES)} | 64 MiB |"
    yield "|---" * (len(SIZES) + 2) + "|"
    for kind in KINDS:
        cells = [_cell(times[f"hop {num_bytes} {kind}"]) for num_bytes in SIZES.values()]
        bulk = BULK_BYTES / statistics.median(times[f"bulk {kind}"]) / 1e9
        yield f"| {kind} | {' | '.join(cells)} | {bulk:.2f} GB/s |"


def _sum_table(times: dict[int, Times]) -> Iterator[str]:
    heads = [f"{size} ranks, {name}" for size in times for name in SIZES]
    yield f"| all-reduce of bf16 | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for name in (*KINDS, "gloo in float32", "gloo's all_reduce"):
        cells = [_cell(times[size][f"sum {num_bytes} {name}"]) for size in times for num_bytes in SIZES.values()]
        yield f"| {name} | {' | '.join(cells)} |"


def _way_table(times: Times) -> Iterator[str]:
    yield "| 3 ranks | 8 KiB | 64 KiB | 256 KiB | 2 MiB |"
    yield "|---|---|---|---|---|"
    for kind in ("tls", "unix"):
        for way, words in (("_sum_of_all", "everybody everything"), ("_sum_by_parts", "by parts")):
            cells = [_cell(times[f"way {num_bytes} {kind} {way}"]) for num_bytes in REPEATS]
            yield f"| {kind}, {words} | {' | '.join(cells)} |"


def _death_table(deaths: dict[CarrierKind, list[float]]) -> Iterator[str]:
    yield "| SIGKILL of the other rank | noticed after, ms: median | worst |"
    yield "|---|---|---|"
    for kind, seen in deaths.items():
        yield f"| {kind} | {statistics.median(seen) * 1e3:.1f} | {max(seen) * 1e3:.1f} |"


def _cell(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e6:.0f} / {min(seconds) * 1e6:.0f}"


def _write(table: str) -> None:
    text = DOCUMENT.read_text()
    if BEGIN not in text:
        text = (
            text.rstrip()
            + f"\n\n## Links\n\n`make bench-links` measures and writes these tables.\n\n{BEGIN}\n{END}\n"
        )
    before, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
