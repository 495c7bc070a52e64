"""What every carrier promises, over every carrier that can run here. Gloo's all_reduce is the oracle of sums."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import cast

import msgspec
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions, ProcessGroupGloo

from agent.engine.links.carrier import Carrier, Group
from agent.engine.links.connection import JOINED_BYTES
from agent.errors import FleetError
from agent.planner.carriers import DIRECT_SUM_BYTES, CarrierKind
from agent.wire.rank import TlsFiles
from tests.agent.engine.certificates import Authority
from tests.agent.engine.links.members import (
    MemberProcess,
    Seat,
    meet,
    meet_all,
    numbers,
    on_all,
    store_of,
)
from tests.agent.engine.rendezvous import serve_rendezvous

HANG_S = 20.0
"""Nothing here takes this long; who waits longer would wait for ever."""
SHORT_S = 0.4
MIB = 1 << 20
NO_ABORTED_SENDS = "{} takes the process down when a send under way is aborted: the agent then sees a dead rank"
Seats = Callable[..., list[Seat]]


def can_use_nccl() -> bool:
    return dist.is_nccl_available() and torch.cuda.device_count() >= 2


@pytest.fixture(
    params=[
        "tls",
        "tcp",
        "unix",
        "gloo",
        pytest.param(
            "nccl", marks=pytest.mark.skipif(not can_use_nccl(), reason="NCCL needs two CUDA devices here")
        ),
    ]
)
def kind(request: pytest.FixtureRequest) -> CarrierKind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return Authority(tmp_path_factory.mktemp("tls")).leaf("leaf")


@pytest.fixture
def seats(folder: Path, kind: CarrierKind, tls: TlsFiles) -> Iterator[Seats]:
    """Seats of a link of so many members, each call under a prefix of its own."""
    made = 0

    def make(size: int, *, step_timeout_s: float = HANG_S) -> list[Seat]:
        nonlocal made
        made += 1
        return [
            Seat(
                folder=str(folder),
                kind=kind,
                prefix=f"chat/{made}/link",
                index=index,
                size=size,
                tls=tls,
                step_timeout_s=step_timeout_s,
            )
            for index in range(size)
        ]

    with serve_rendezvous(folder / "agent.sock"):
        yield make


def close_all(*carriers: Carrier) -> None:
    for carrier in carriers:
        carrier.close()


def raises_within(limit_s: float, act: Callable[[], object]) -> str:
    """The carrier's reason; fails when it takes longer or does not raise."""
    begun = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        act()
    assert time.monotonic() - begun < limit_s
    return str(caught.value)


# --- messages -----------------------------------------------------------------------------------------------


def test_messages_of_every_size_and_dtype_arrive_in_order(seats: Seats) -> None:
    joined = JOINED_BYTES // 4
    sizes = [1, 2, 3, 1000, 2048, joined - 1, joined, joined + 1, 1, MIB // 4, 5, 16 * MIB, 1]
    tensors = [numbers(size, seed=size) for size in sizes]
    tensors += [numbers(4096, seed=7, kind=kind) for kind in (torch.bfloat16, torch.float16, torch.float64)]
    tensors += [torch.arange(9), torch.tensor([True, False]), numbers(12, seed=3).view(3, 4), torch.tensor(2.5)]
    tensors += [numbers(24, seed=4).view(4, 6).t()]
    sender, receiver = meet_all(seats(2))

    def act(index: int, carrier: Carrier) -> list[Tensor]:
        if index == 0:
            for pending in [carrier.send(tensor, 1) for tensor in tensors]:
                pending.wait()
            return []
        return [carrier.receive(tuple(tensor.shape), tensor.dtype, 0) for tensor in tensors]

    received = on_all([sender, receiver], act)[1]
    for sent, got in zip(tensors, received, strict=True):
        assert got.dtype == sent.dtype
        assert torch.equal(got, sent)
    close_all(sender, receiver)


def test_an_empty_message_keeps_its_place(seats: Seats, kind: CarrierKind) -> None:
    if kind in ("gloo", "nccl"):
        pytest.skip(f"{kind} sends nothing for an empty tensor, and nobody relies on it")
    sender, receiver = meet_all(seats(2))
    for tensor in (torch.zeros(0), torch.ones(3)):
        sender.send(tensor, 1).wait()
    assert receiver.receive((0,), torch.float32, 0).shape == (0,)
    assert torch.equal(receiver.receive((3,), torch.float32, 0), torch.ones(3))
    assert [t.numel() for t in on_all([sender, receiver], lambda _, c: c.all_reduce(torch.zeros(0)))] == [0, 0]
    close_all(sender, receiver)


def test_a_message_that_is_followed_arrives_with_the_next(seats: Seats) -> None:
    sender, receiver = meet_all(seats(2))
    for size in (8, MIB):
        head, body = torch.arange(3), numbers(size, seed=size)
        pending = [sender.send(head, 1, is_followed=True), sender.send(body, 1)]
        assert torch.equal(receiver.receive((3,), torch.int64, 0), head)
        assert torch.equal(receiver.receive((size,), torch.float32, 0), body)
        for message in pending:
            message.wait()
    close_all(sender, receiver)


def test_a_message_of_64_mib_arrives_whole(seats: Seats) -> None:
    sender, receiver = meet_all(seats(2))
    body = torch.arange(16 * MIB, dtype=torch.int32)
    pending = sender.send(body, 1)
    assert torch.equal(receiver.receive((16 * MIB,), torch.int32, 0), body)
    pending.wait()
    close_all(sender, receiver)


def test_both_ends_may_send_more_than_buffers_hold_before_they_receive(seats: Seats) -> None:
    carriers = meet_all(seats(2))
    bodies = [[numbers(4 * MIB, seed=10 * i + n) for n in range(2)] for i in range(2)]

    def act(index: int, carrier: Carrier) -> list[Tensor]:
        pending = [carrier.send(body, 1 - index) for body in bodies[index]]
        received = [carrier.receive((4 * MIB,), torch.float32, 1 - index) for _ in pending]
        for message in pending:
            message.wait()
        return received

    received = on_all(carriers, act)
    for index in range(2):
        assert all(torch.equal(a, b) for a, b in zip(received[index], bodies[1 - index], strict=True))
    close_all(*carriers)


def test_a_message_of_another_size_is_an_error(seats: Seats, kind: CarrierKind) -> None:
    if kind in ("gloo", "nccl"):
        pytest.skip(f"{kind} carries no lengths; the headers of pipeline links tell there")
    sender, receiver = meet_all(seats(2))
    sender.send(torch.zeros(4), 1)
    reason = raises_within(HANG_S, lambda: receiver.receive((5,), torch.float32, 0))
    assert reason == "a message of 16 bytes came where 20 were expected"
    raises_within(HANG_S, lambda: receiver.receive((4,), torch.float32, 0))  # broken for good
    close_all(sender, receiver)


# --- sums ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_are_gloos_and_equal_to_the_bit_everywhere(seats: Seats, size: int, kind: CarrierKind) -> None:
    carriers = meet_all(seats(size))
    oracle = _oracles(seats(size))
    above = DIRECT_SUM_BYTES // 2 + 1
    cases = [(count, dtype) for count in (1, 5, 4096, above, 300_001) for dtype in (torch.float32, torch.bfloat16)]
    cases.append((7, torch.int64))
    for count, dtype in cases:
        partials = [numbers(count, seed=i, kind=dtype) for i in range(size)]
        before = [partial.clone() for partial in partials]
        totals = on_all(carriers, lambda i, carrier: carrier.all_reduce(partials[i]))  # noqa: B023 - done at once
        expected = on_all(oracle, lambda i, group: _gloo_sum(group, partials[i]))[0]  # noqa: B023
        for index, total in enumerate(totals):
            assert total.dtype == dtype
            assert torch.equal(total, totals[0]), f"member {index} of {size} goes on with other bits"
            assert torch.equal(partials[index], before[index])
        if dtype == torch.bfloat16:
            assert torch.equal(totals[0], expected.bfloat16()) or torch.allclose(
                totals[0].float(), expected, rtol=2**-8, atol=1e-6
            )
        else:
            assert torch.allclose(totals[0].double(), expected.double(), rtol=1e-5, atol=1e-6)
    close_all(*carriers)


def test_16_bit_partials_are_rounded_once(seats: Seats) -> None:
    size = 4
    carriers = meet_all(seats(size))
    for count in (33, DIRECT_SUM_BYTES):
        partials = [numbers(count, seed=i, kind=torch.bfloat16) for i in range(size)]
        totals = on_all(carriers, lambda i, carrier: carrier.all_reduce(partials[i]))  # noqa: B023 - done at once
        exact = torch.stack([partial.double() for partial in partials]).sum(0)
        half_a_step = (exact.abs() * 2**-8).clamp_min(2**-20)
        assert ((totals[0].double() - exact).abs() <= half_a_step).all()
    close_all(*carriers)


def test_members_may_be_out_of_step_by_one_sum(seats: Seats) -> None:
    carriers = meet_all(seats(3))

    def act(index: int, carrier: Carrier) -> list[float]:
        sums = []
        for step in range(40):
            count = 3 if step % 4 else DIRECT_SUM_BYTES
            sums.append(float(carrier.all_reduce(torch.full((count,), float(step + index)))[0]))
        return sums

    assert on_all(carriers, act) == [[3.0 * step + 3 for step in range(40)]] * 3
    close_all(*carriers)


def _oracles(seats: list[Seat]) -> list[ProcessGroupGloo]:
    def make(seat: Seat) -> ProcessGroupGloo:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=HANG_S)
        return ProcessGroupGloo(store_of(seat), seat.index, seat.size, options)

    return on_all(seats, lambda _, seat: make(seat))


def _gloo_sum(group: ProcessGroupGloo, partial: Tensor) -> Tensor:
    total = partial.float() if partial.dtype == torch.bfloat16 else partial.clone()
    cast("Group", group).allreduce([total], AllreduceOptions()).wait()
    return total


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_ranks_on_one_gpu_link_through_host_memory(seats: Seats, kind: CarrierKind) -> None:
    if kind == "nccl":
        pytest.skip("NCCL takes one rank on a device")
    device = torch.device("cuda", 0)
    carriers = meet_all([msgspec.structs.replace(seat, device=str(device)) for seat in seats(2)])
    body = numbers(5000, seed=1, kind=torch.bfloat16).to(device)
    carriers[0].send(body, 1).wait()
    received = carriers[1].receive((5000,), torch.bfloat16, 0)
    assert received.device == device
    assert torch.equal(received, body)
    totals = on_all(carriers, lambda _, carrier: carrier.all_reduce(body))
    assert torch.equal(totals[0], body + body)
    assert totals[1].device == device
    close_all(*carriers)


# --- ends ---------------------------------------------------------------------------------------------------


def test_abort_from_another_thread_ends_every_receive_and_nothing_works_after(seats: Seats) -> None:
    first, second = meet_all(seats(2))
    threading.Timer(0.1, second.abort).start()
    raises_within(HANG_S / 2, lambda: second.receive((1,), torch.float32, 0))
    raises_within(HANG_S / 2, lambda: second.receive((1,), torch.float32, 0))
    raises_within(HANG_S / 2, lambda: first.all_reduce(torch.ones(1)))
    close_all(first, second)


def test_abort_ends_a_send_that_nobody_takes(seats: Seats, kind: CarrierKind) -> None:
    if kind in ("gloo", "nccl"):
        pytest.skip(NO_ABORTED_SENDS.format(kind))
    sender, receiver = meet_all(seats(2))
    pending = sender.send(torch.zeros(16 * MIB), 1)  # more than any buffer holds, and nobody receives
    threading.Timer(0.1, sender.abort).start()
    raises_within(HANG_S / 2, pending.wait)
    raises_within(HANG_S / 2, lambda: sender.send(torch.zeros(16 * MIB), 1).wait())
    close_all(sender, receiver)


def test_a_link_is_rebuilt_alone(seats: Seats) -> None:
    other = meet_all(seats(2))
    for _ in range(5):
        first, second = meet_all(seats(2))
        assert [float(t) for t in on_all([first, second], lambda i, c: c.all_reduce(torch.tensor(i + 1.0)))] == [
            3,
            3,
        ]
        first.abort()
        raises_within(HANG_S / 2, lambda: second.receive((1,), torch.float32, 0))  # noqa: B023 - done at once
        close_all(first, second)
    assert [float(t) for t in on_all(other, lambda i, c: c.all_reduce(torch.tensor(i + 1.0)))] == [3, 3]
    close_all(*other)


def test_links_leave_no_descriptor_and_no_thread_behind(seats: Seats) -> None:
    def round_trip() -> None:
        carriers = meet_all(seats(3))
        on_all(
            carriers,
            lambda i, c: [
                c.send(torch.zeros(4 * MIB), (i + 1) % 3),
                c.receive((4 * MIB,), torch.float32, (i + 2) % 3),
            ],
        )
        close_all(*carriers)

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))  # noqa: PTH208 - counted

    round_trip()
    before = held()
    for _ in range(3):
        round_trip()
    _until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


def test_a_receive_ends_at_its_deadline(seats: Seats) -> None:
    sender, receiver = meet_all(seats(2, step_timeout_s=SHORT_S))
    begun = time.monotonic()
    raises_within(HANG_S, lambda: receiver.receive((8,), torch.float32, 0))
    assert time.monotonic() - begun >= SHORT_S * 0.9
    close_all(sender, receiver)


def test_a_send_ends_at_its_deadline(seats: Seats, kind: CarrierKind) -> None:
    if kind in ("gloo", "nccl"):
        pytest.skip(NO_ABORTED_SENDS.format(kind))
    sender, receiver = meet_all(seats(2, step_timeout_s=SHORT_S))
    pending = sender.send(torch.zeros(16 * MIB), 1)
    begun = time.monotonic()
    assert raises_within(HANG_S, pending.wait) == f"the other rank took nothing for {SHORT_S} s"
    assert time.monotonic() - begun >= SHORT_S * 0.9
    raises_within(HANG_S, lambda: receiver.receive((32 * MIB,), torch.float32, 0))
    close_all(sender, receiver)


def test_a_member_that_does_not_come_ends_at_the_deadline(seats: Seats, kind: CarrierKind) -> None:
    if kind == "gloo":
        pytest.skip("tests/agent/engine/test_store.py shows it for the store that gloo meets on")
    for index in range(2):
        seat = msgspec.structs.replace(seats(2)[index], meet_limit_s=SHORT_S)
        begun = time.monotonic()
        with pytest.raises((RuntimeError, FleetError), match=r"did not connect in time|nobody set 0 in time"):
            meet(seat)
        assert time.monotonic() - begun < HANG_S / 2


# --- other processes ----------------------------------------------------------------------------------------


def test_a_killed_or_stopped_member_is_noticed(seats: Seats) -> None:
    member = MemberProcess()
    try:
        first, second = seats(2, step_timeout_s=SHORT_S)
        member.begin("meet", second)
        carrier = meet(first)
        assert member.answer() == "done"
        member.process.send_signal(signal.SIGSTOP)
        reason = raises_within(HANG_S, lambda: carrier.receive((8,), torch.float32, 1))
        assert "nothing came for 0.4 s" in reason or "timed out" in reason.lower()
        member.process.send_signal(signal.SIGCONT)
        carrier.close()

        first, second = seats(2)
        member.begin("meet", second)
        carrier = meet(first)
        assert member.answer() == "done"
        threading.Timer(0.1, member.process.kill).start()
        raises_within(HANG_S / 2, lambda: carrier.all_reduce(torch.ones(64)))
        raises_within(HANG_S / 2, lambda: carrier.send(torch.ones(1), 1).wait())
        carrier.close()
    finally:
        member.end()


def test_the_death_of_one_member_ends_the_waits_of_all(seats: Seats, kind: CarrierKind) -> None:
    member = MemberProcess()
    try:
        *here, there = seats(3)
        member.begin("meet", there)
        carriers = meet_all(here)
        assert member.answer() == "done"
        threading.Timer(0.1, member.process.kill).start()

        def act(index: int, carrier: Carrier) -> str:
            if index == 1 and kind == "gloo":
                return raises_within(HANG_S / 2, lambda: carrier.receive((8,), torch.float32, 2))
            # the first waits for the second, which is alive and waits for the dead one
            return raises_within(HANG_S / 2, lambda: carrier.receive((8,), torch.float32, 1 if index == 0 else 2))

        if kind == "gloo":
            assert act(1, carriers[1])
        else:
            assert all(on_all(carriers, act))
        close_all(*carriers)
    finally:
        member.end()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
