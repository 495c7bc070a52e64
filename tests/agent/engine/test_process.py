"""Real rank processes over real sockets: what a supervisor and a gateway see of them."""

from __future__ import annotations

import signal
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.planner.shards import ShardExtent, shard_weight_bytes, whole_extent
from agent.wire.framing import StreamClosed
from agent.wire.rank import (
    GetStatus,
    RankConfig,
    SequenceSlice,
    Step,
    StepDone,
    StepFailed,
    StepOpened,
    StepRefused,
    StopRank,
    TlsFiles,
    UnlinkRank,
)
from tests.agent.engine.certificates import Authority
from tests.agent.engine.models import Reference, stage
from tests.agent.engine.processes import Gateway, ProcessRank, ProcessReplica, link, start_ranks
from tests.agent.engine.rendezvous import RendezvousServer, serve_rendezvous
from tests.agent.engine.test_decoder import random_tokens
from tests.agent.engine.threads import Stages, plan_links, rank_config

LOSS_LIMIT_S = 1.0


@pytest.fixture
def model(reference: Callable[[str], Reference]) -> Reference:
    return reference("llama3")


@pytest.fixture
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture
def tls(authority: Authority) -> TlsFiles:
    return authority.leaf("leaf")


@pytest.fixture
def store(folder: Path) -> Iterator[RendezvousServer]:
    with serve_rendezvous(folder / "agent.sock") as server:
        yield server


def configs_of(stages: Stages, model: Reference, folder: Path) -> list[RankConfig]:
    return [
        rank_config(model.spec, extent, folder=folder, model_dir=model.path, stage=s, tensor_index=t)
        for s, shards in enumerate(stages)
        for t, extent in enumerate(shards)
    ]


def two_stages(model: Reference) -> list[tuple[ShardExtent, ...]]:
    return [stage(model.spec, (0, 2)), stage(model.spec, (2, 4))]


def test_a_hybrid_replica_serves_and_counts(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = [stage(model.spec, (0, 3), (3, 1)), stage(model.spec, (3, 4))]
    prompt = random_tokens(9, seed=1)
    with start_ranks(configs_of(stages, model, folder), folder) as ranks:
        linked = link(ranks, plan_links(stages, generation=2))
        assert {status.state for status in linked.values()} == {"linked"}
        with ProcessReplica(ranks, tls, generation=2, leader="r0s1t0") as replica:
            assert replica.generate(prompt, 24) == model.generate(prompt, 24)
        first, _, last = (rank.ask(GetStatus()) for rank in ranks)
        for rank, layers in zip(ranks, (3, 3, 1), strict=True):
            status = rank.ask(GetStatus())
            extent = rank.config.extent
            assert status.weight_bytes == shard_weight_bytes(model.spec, extent, "float32")
            assert status.read_bytes == status.weight_bytes
            assert status.kv_cache_bytes == 2 * layers * 4 * 128 * (extent.kv_heads[1] - extent.kv_heads[0]) * 8 * 4
            assert (status.steps, status.tokens, status.progress) == (24, 32, 24 * layers)
            assert status.busy_s > 0
            assert stat.S_IMODE(Path(rank.config.socket).stat().st_mode) == 0o600
        sent = next(count for count in first.links if count.name == "r0s0t0>r0s1t0")
        received = next(count for count in last.links if count.name == "r0s0t0>r0s1t0")
        assert sent.sent_bytes == received.received_bytes == 32 * 64 * 4 + 24 * 24
        assert [rank.stop() for rank in ranks] == [0, 0, 0]
    assert all(key.startswith("chat/2/") for key in store.values)
    assert {request.controller for request in store.requests} == {"host01"}


def test_a_killed_peer_is_told_within_a_second_and_the_survivor_links_again(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = two_stages(model)
    configs = configs_of(stages, model, folder)
    prompt = random_tokens(12, seed=2)
    with start_ranks(configs, folder) as (first, second):
        link([first, second], plan_links(stages, generation=2))
        with ProcessReplica([first, second], tls, generation=2, leader="r0s1t0") as replica:
            replica.generate(prompt, 3)
            # the second stage waits for hidden states that never come
            replica.gateways["r0s1t0"].send(
                Step(
                    step_id=99, slices=[SequenceSlice(slot=1, start=0, tokens=prompt, samples=True, new_blocks=[5])]
                )
            )
            second.wait_until(lambda status: status.queued_steps == 0)
            begun = time.monotonic()
            first.kill()
            failed = replica.gateways["r0s1t0"].receive(timeout_s=LOSS_LIMIT_S)
            assert time.monotonic() - begun < LOSS_LIMIT_S
            assert isinstance(failed, StepFailed)
            assert (failed.step_id, failed.error.code) == (99, "E802")
            assert "r0s0t0>r0s1t0" in failed.error.message
            assert "r0s0t0" in failed.error.hint
        first.process.wait(10)
        status = second.ask(GetStatus())
        assert status.state == "loaded"
        assert status.error == failed.error
        restarted = ProcessRank(configs[0], folder)
        try:
            restarted.wait_loaded()
            ranks = [restarted, second]
            statuses = link(ranks, plan_links(stages, generation=3))
            assert [status.error for status in statuses.values()] == [None, None]
            with ProcessReplica(ranks, tls, generation=3, leader="r0s1t0") as replica:
                assert replica.generate(prompt, 16) == model.generate(prompt, 16)
        finally:
            restarted.end()


def test_a_sender_learns_of_a_killed_receiver(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = two_stages(model)
    with start_ranks(configs_of(stages, model, folder), folder) as (first, second):
        link([first, second], plan_links(stages, generation=2))
        with ProcessReplica([first, second], tls, generation=2, leader="r0s1t0") as replica:
            replica.generate([5, 6], 2)
            second.kill()
            second.process.wait(10)
            begun = time.monotonic()
            replica.gateways["r0s0t0"].send(
                Step(step_id=50, slices=[SequenceSlice(slot=0, start=0, tokens=[1], samples=True, new_blocks=[5])])
            )
            failed = replica.gateways["r0s0t0"].receive(timeout_s=LOSS_LIMIT_S)
            assert time.monotonic() - begun < LOSS_LIMIT_S
    assert isinstance(failed, StepFailed)
    assert failed.error.code == "E802"


def test_a_member_of_a_tensor_group_learns_of_a_killed_one(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = [stage(model.spec, (0, 4), (1, 1))]
    with start_ranks(configs_of(stages, model, folder), folder) as (leader, member):
        link([leader, member], plan_links(stages, generation=2))
        with ProcessReplica([leader, member], tls, generation=2, leader="r0s0t0") as replica:
            replica.generate([5, 6], 2)
            replica.gateways["r0s0t0"].send(
                Step(step_id=9, slices=[SequenceSlice(slot=1, start=0, tokens=[7], samples=True, new_blocks=[5])])
            )
            leader.wait_until(lambda status: status.queued_steps == 0)
            member.kill()
            failed = replica.gateways["r0s0t0"].receive(timeout_s=LOSS_LIMIT_S)
    assert isinstance(failed, StepFailed)
    assert failed.error.code == "E802"
    assert "r0s0t1" in failed.error.message


def test_a_step_that_only_some_ranks_got_fails_loudly(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = two_stages(model)
    with start_ranks(configs_of(stages, model, folder), folder) as (first, second):
        link([first, second], plan_links(stages, generation=2))
        with ProcessReplica([first, second], tls, generation=2, leader="r0s1t0") as replica:
            piece = SequenceSlice(slot=0, start=0, tokens=[1, 2], samples=True, new_blocks=[5])
            half = Step(step_id=1, slices=[piece])
            replica.gateways["r0s0t0"].send(half)  # and then the gateway dies
        with ProcessReplica([first, second], tls, generation=2, leader="r0s1t0") as replica:
            replica.put([SequenceSlice(slot=0, start=0, tokens=[3, 4], samples=True)])
            failed = replica.gateways["r0s1t0"].receive()
    assert isinstance(failed, StepFailed)
    assert failed.error.code == "E802"
    assert "r0s0t0 executes step 1" in failed.error.message


def test_unlinking_unblocks_a_rank_that_waits_for_a_stopped_one(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = two_stages(model)
    with start_ranks(configs_of(stages, model, folder), folder) as (first, second):
        link([first, second], plan_links(stages, generation=2))
        with ProcessReplica([first, second], tls, generation=2, leader="r0s1t0") as replica:
            replica.generate([5, 6], 2)
            first.kill(signal.SIGSTOP)
            replica.put([SequenceSlice(slot=0, start=0, tokens=[1, 2, 3], samples=True)])
            second.wait_until(lambda status: status.queued_steps == 0)
            begun = time.monotonic()
            status = second.ask(UnlinkRank())
            assert time.monotonic() - begun < LOSS_LIMIT_S
            assert (status.state, status.error) == ("loaded", None)
            failed = replica.gateways["r0s1t0"].receive(timeout_s=LOSS_LIMIT_S)
            assert isinstance(failed, StepFailed)
        first.kill(signal.SIGCONT)


def test_linking_without_the_other_rank_ends_in_time_and_can_be_cut_short(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = two_stages(model)
    with start_ranks(configs_of(stages, model, folder)[:1], folder) as (first,):
        begun = time.monotonic()
        status = first.ask(plan_links(stages, generation=2, timeout_s=0.5)["r0s0t0"])
        assert 0.4 < time.monotonic() - begun < 2.5
        assert status.state == "loaded"
        assert status.error is not None
        assert status.error.code == "E802"
        assert "r0s0t0>r0s1t0" in status.error.message
        long = plan_links(stages, generation=3, timeout_s=30.0)["r0s0t0"]
        answers = []
        asking = threading.Thread(target=lambda: answers.append(first.ask(long)))
        asking.start()
        first.wait_until(lambda status: status.generation == 3)
        begun = time.monotonic()
        assert first.ask(UnlinkRank()).state == "loaded"
        asking.join(5)
        assert time.monotonic() - begun < 2.0
        assert answers[0].state == "loaded"
        assert answers[0].error is not None
        older = first.ask(plan_links(stages, generation=2, timeout_s=0.5)["r0s0t0"])
        assert older.error is not None
        assert older.error.code == "E801"


def test_a_gateway_must_be_of_this_generation_and_a_new_one_replaces_the_old(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = [(whole_extent(model.spec),)]
    with start_ranks(configs_of(stages, model, folder), folder) as (rank,):
        unlinked = Gateway(rank, tls, generation=1)
        assert isinstance(unlinked.hello, StepRefused)
        assert "loaded, not linked" in unlinked.hello.error.message
        link([rank], plan_links(stages, generation=4))
        for wrong in (Gateway(rank, tls, generation=3), Gateway(rank, tls, generation=4, deployment="other")):
            assert isinstance(wrong.hello, StepRefused)
            assert wrong.hello.error.code == "E801"
            wrong.close()
        old = Gateway(rank, tls, generation=4)
        new = Gateway(rank, tls, generation=4)
        assert isinstance(new.hello, StepOpened)
        with pytest.raises((StreamClosed, ssl.SSLError)):
            old.receive(timeout_s=5)
        piece = SequenceSlice(slot=0, start=0, tokens=[1, 2], samples=True, new_blocks=[5])
        new.send(Step(step_id=1, slices=[piece]))
        assert isinstance(new.receive(), StepDone)
        link([rank], plan_links(stages, generation=5))
        with pytest.raises((StreamClosed, ssl.SSLError)):
            new.receive(timeout_s=5)  # its generation is over
        assert rank.ask(GetStatus()).steps == 1
        for gateway in (unlinked, old, new):
            gateway.close()


def test_strangers_are_not_let_in(model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer) -> None:
    stranger = Authority(folder, name="other").leaf("stranger")
    with start_ranks(configs_of([(whole_extent(model.spec),)], model, folder), folder) as (rank,):
        link([rank], plan_links([(rank.config.extent,)], generation=2))
        foreign = TlsFiles(ca=tls.ca, cert=stranger.cert, key=stranger.key)
        for files, with_certificate in ((foreign, True), (tls, False)):
            # TLS 1.3: a client has finished before the server has judged it, so it learns when it reads
            with pytest.raises((StreamClosed, ssl.SSLError)):
                Gateway(rank, files, generation=2, with_certificate=with_certificate)
        friend = Gateway(rank, tls, generation=2)
        assert isinstance(friend.hello, StepOpened)
        friend.close()


def test_a_rotated_leaf_is_presented_without_a_restart(
    model: Reference, folder: Path, authority: Authority, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = [(whole_extent(model.spec),)]
    with start_ranks(configs_of(stages, model, folder), folder) as (rank,):
        link([rank], plan_links(stages, generation=2))
        before = Gateway(rank, tls, generation=2)
        authority.leaf("leaf")  # over the same files
        after = Gateway(rank, tls, generation=2)
        assert isinstance(after.hello, StepOpened)
        assert before.server_serial != after.server_serial
        before.close()
        after.close()


def test_sigterm_ends_it_cleanly_and_a_hang_up_does_not(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = [(whole_extent(model.spec),)]
    with start_ranks(configs_of(stages, model, folder), folder) as (rank,):
        for ignored in (signal.SIGHUP, signal.SIGINT):
            rank.kill(ignored)
        assert rank.ask(GetStatus()).state == "loaded"
        rank.kill(signal.SIGTERM)
        assert rank.process.wait(10) == 0
        assert not Path(rank.config.socket).exists()


def test_a_rank_that_cannot_load_says_why_and_leaves_with_1(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    shard = folder / "shard.safetensors"
    shard.write_bytes((model.path / "model.safetensors").read_bytes()[:-4096])
    config = rank_config(
        model.spec, whole_extent(model.spec), folder=folder, model_dir=model.path, shard_file=str(shard)
    )
    with start_ranks([config], folder) as (rank,):
        status = rank.wait_loaded()
        assert status.state == "failed"
        assert status.error is not None
        assert status.error.code == "E704"
        assert "cut off" in status.error.message
        refused = rank.ask(plan_links([(config.extent,)], generation=2)["r0s0t0"])
        assert (refused.state, refused.error) == ("failed", status.error)
        rank.ask(StopRank())
        assert rank.process.wait(10) == 1


def test_status_is_answered_while_the_engine_is_busy(
    reference: Callable[[str], Reference], folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    model = reference("llama3")
    stages = [(whole_extent(model.spec),)]
    with start_ranks(configs_of(stages, model, folder), folder) as (rank,):
        link([rank], plan_links(stages, generation=2))
        with ProcessReplica([rank], tls, generation=2, leader="r0s0t0") as replica:
            tokens = random_tokens(100, seed=3)
            for slot in range(40):
                replica.put([SequenceSlice(slot=slot % 4, start=0, tokens=tokens, samples=True)])
            waits = []
            while rank.ask(GetStatus()).steps < 40:
                begun = time.monotonic()
                rank.ask(GetStatus())
                waits.append(time.monotonic() - begun)
            assert max(waits, default=0.0) < 0.5
            ids = [replica.gateways["r0s0t0"].receive() for _ in range(40)]
            assert [done.step_id for done in ids if isinstance(done, StepDone)] == list(range(1, 41))


def test_descriptors_do_not_grow_with_generations(
    model: Reference, folder: Path, tls: TlsFiles, store: RendezvousServer
) -> None:
    stages = two_stages(model)
    with start_ranks(configs_of(stages, model, folder), folder) as ranks:
        counts = []
        for generation in range(2, 12):
            link(ranks, plan_links(stages, generation=generation))
            with ProcessReplica(ranks, tls, generation=generation, leader="r0s1t0") as replica:
                replica.generate([1, 2, 3], 2)
            counts.append([len(list(Path(f"/proc/{rank.process.pid}/fd").iterdir())) for rank in ranks])
        assert max(counts[-1]) <= max(counts[1]) + 1, counts
