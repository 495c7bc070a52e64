"""What stands on the carriers, over real links between threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from agent.engine.links.build import Links, RankPosition
from agent.errors import FleetError
from agent.planner.carriers import CarrierKind
from agent.wire.rank import LinkRank, PipelineLink, TensorGroup, TlsFiles
from tests.agent.engine.certificates import Authority
from tests.agent.engine.models import Reference
from tests.agent.engine.rendezvous import serve_rendezvous
from tests.agent.engine.test_decoder import LAYOUTS
from tests.agent.engine.threads import run_threads

HIDDEN_SIZE = 8
Result = TypeVar("Result")


@pytest.fixture(params=["tls", "unix", "gloo"])
def carrier(request: pytest.FixtureRequest) -> CarrierKind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def agent_socket(folder: Path) -> Iterator[str]:
    Authority(folder).leaf("leaf")
    with serve_rendezvous(folder / "agent.sock"):
        yield str(folder / "agent.sock")


def position(rank_id: str, agent_socket: str, *, vocab: tuple[int, int] = (0, 1)) -> RankPosition:
    folder = Path(agent_socket).parent
    return RankPosition(
        rank_id=rank_id,
        deployment="chat",
        cluster_address="127.0.0.1",
        agent_socket=agent_socket,
        device=torch.device("cpu"),
        hidden_size=HIDDEN_SIZE,
        kind=torch.bfloat16,
        vocab=vocab,
        cluster="lab",
        host="host01",
        tls=TlsFiles(ca=f"{folder}/ca.pem", cert=f"{folder}/leaf.pem", key=f"{folder}/leaf.key"),
        step_port=0,
    )


def build_all(
    orders: dict[str, LinkRank], positions: dict[str, RankPosition], *, limit_s: float = 10.0
) -> dict[str, Links]:
    made = {rank_id: Links() for rank_id in orders}

    def build(rank_id: str) -> None:
        made[rank_id].build(orders[rank_id], positions[rank_id], deadline=time.monotonic() + limit_s)

    with ThreadPoolExecutor(len(orders)) as pool:
        list(pool.map(build, orders))
    return made


def on_all(made: dict[str, Links], do: Callable[[str, Links], Result]) -> dict[str, Result]:
    with ThreadPoolExecutor(len(made)) as pool:
        return dict(zip(made, pool.map(lambda item: do(*item), made.items()), strict=True))


def pair(agent_socket: str, carrier: CarrierKind, *, limit_s: float = 10.0) -> tuple[Links, Links]:
    def order(*, is_sender: bool) -> LinkRank:
        link = PipelineLink(name="a>b", other_rank="b" if is_sender else "a", carrier=carrier)
        return LinkRank(
            generation=1,
            receives_from=None if is_sender else link,
            sends_to=(link,) if is_sender else (),
            group=None,
            timeout_s=10,
        )

    orders = {"a": order(is_sender=True), "b": order(is_sender=False)}
    made = build_all(orders, {rank_id: position(rank_id, agent_socket) for rank_id in orders}, limit_s=limit_s)
    return made["a"], made["b"]


def test_sends_do_not_wait_for_the_receiver_and_arrive_in_order(agent_socket: str, carrier: CarrierKind) -> None:
    sending, receiving = pair(agent_socket, carrier)
    steps = [torch.randn(rows, HIDDEN_SIZE).bfloat16() for rows in (1, 5, 2, 300)]
    begun = time.monotonic()
    for step_id, hidden in enumerate(steps):
        sending.senders[0].send((step_id, 0), hidden)
    assert time.monotonic() - begun < 1.0  # nobody has received yet
    assert receiving.receiver is not None
    for step_id, hidden in enumerate(steps):
        assert torch.equal(receiving.receiver.receive((step_id, 0), hidden.shape[0]), hidden)
    assert sending.counters[0].sent_bytes == receiving.counters[0].received_bytes
    sending.close()
    receiving.close()


def test_a_slow_stage_is_waited_for_longer_than_linking_may_take(agent_socket: str, carrier: CarrierKind) -> None:
    sending, receiving = pair(agent_socket, carrier, limit_s=0.6)
    late = threading.Timer(0.9, lambda: sending.senders[0].send((1, 0), torch.zeros(1, HIDDEN_SIZE).bfloat16()))
    late.start()
    assert receiving.receiver is not None
    assert receiving.receiver.receive((1, 0), 1).shape == (1, HIDDEN_SIZE)
    assert receiving.counters[0].wait_s > 0.6
    late.join(5)
    sending.close()
    receiving.close()


@pytest.mark.parametrize(("key", "rows"), [((8, 0), 2), ((7, 1), 2), ((7, 0), 3)])
def test_two_ends_with_different_steps_fail_loudly(
    agent_socket: str, carrier: CarrierKind, key: tuple[int, int], rows: int
) -> None:
    sending, receiving = pair(agent_socket, carrier)
    sending.senders[0].send((7, 0), torch.zeros(2, HIDDEN_SIZE).bfloat16())
    assert receiving.receiver is not None
    with pytest.raises(FleetError, match=rf"a executes step 7 \(2 tokens\), this rank step {key[0]}") as caught:
        receiving.receiver.receive(key, rows)
    assert caught.value.code == "E802"
    sending.close()
    receiving.close()


def test_abort_unblocks_a_receive_from_another_thread(agent_socket: str, carrier: CarrierKind) -> None:
    sending, receiving = pair(agent_socket, carrier)
    raised: list[tuple[float, FleetError]] = []
    is_waiting = threading.Event()

    def receive() -> None:
        assert receiving.receiver is not None
        is_waiting.set()
        try:
            receiving.receiver.receive((1, 0), 1)
        except FleetError as error:
            raised.append((time.monotonic(), error))

    waiting = threading.Thread(target=receive)
    waiting.start()
    is_waiting.wait(5)
    begun = time.monotonic()
    receiving.abort()
    waiting.join(5)
    assert raised[0][0] - begun < 0.5
    assert raised[0][1].code == "E802"
    assert "a>b" in raised[0][1].message
    sending.close()
    receiving.close()


@pytest.mark.parametrize("size", [2, 3])
def test_a_group_sums_in_float32_and_gathers_uneven_shares(
    agent_socket: str, carrier: CarrierKind, size: int
) -> None:
    members = tuple(f"t{index}" for index in range(size))
    vocabs = [(0, 5), (5, 6), (6, 9)][:size]
    group = TensorGroup(name="g", members=members, carrier=carrier)
    order = LinkRank(generation=1, receives_from=None, sends_to=(), group=group, timeout_s=10)
    made = build_all(
        dict.fromkeys(members, order),
        {member: position(member, agent_socket, vocab=vocabs[i]) for i, member in enumerate(members)},
    )
    partials = {member: torch.randn(3, HIDDEN_SIZE).bfloat16() for member in members}
    logits = torch.randn(2, vocabs[-1][1])

    def act(member: str, links: Links) -> tuple[Tensor, Tensor | None]:
        assert links.group is not None
        links.group.agree_on((4, 4))
        begin, end = vocabs[members.index(member)]
        return links.group.all_reduce(partials[member]), links.group.gather_logits(logits[:, begin:end])

    results = on_all(made, act)
    exact = torch.stack([partial.double() for partial in partials.values()]).sum(0)
    first = results["t0"]
    for member in members:
        total, gathered = results[member]
        assert torch.equal(total, first[0]), "every member must go on with the same bits"
        assert total.dtype == torch.bfloat16
        assert (total.double() - exact).abs().max() <= exact.abs().max() * 2**-8
        assert (gathered is None) == (member != "t0")
    assert first[1] is not None
    assert torch.equal(first[1], logits)

    def disagree(member: str, links: Links) -> str:
        assert links.group is not None
        try:
            links.group.agree_on((5, 0 if member == "t0" else 1))
        except FleetError as error:
            return error.message
        return ""

    said = on_all(made, disagree)
    assert "t1 executes step 5" in said["t0"]
    for links in made.values():
        links.close()


def test_nccl_is_refused_without_cuda_by_name(agent_socket: str) -> None:
    group = TensorGroup(name="g", members=("t0", "t1"), carrier="nccl")
    order = LinkRank(generation=1, receives_from=None, sends_to=(), group=group, timeout_s=1)
    with pytest.raises(FleetError, match=r"NCCL cannot link a rank on cpu") as caught:
        Links().build(order, position("t0", agent_socket), deadline=time.monotonic() + 1)
    assert caught.value.code == "E802"


def test_every_carrier_serves_the_same_tokens(
    carrier: CarrierKind, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama3")
    stages = LAYOUTS["hybrid_wide_first"](model.spec)
    prompts = {0: [5, 6, 7], 1: list(range(40))}
    with run_threads(model.spec, stages, model_dir=model.path, folder=folder, carrier=carrier) as replica:
        made = replica.generate(prompts, 16)
    assert made == {slot: model.generate(prompt, 16) for slot, prompt in prompts.items()}
