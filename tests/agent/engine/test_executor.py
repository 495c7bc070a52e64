"""What the engine thread refuses, and how it fails: in words, and ready for the next generation."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from agent.engine.executor import Executor
from agent.engine.inbox import Inbox, LinkOrder
from agent.engine.status_board import StatusBoard
from agent.facts.model import Dtype
from agent.models.spec import read_spec
from agent.planner.shards import whole_extent
from agent.wire.rank import LinkRank, PipelineLink, RankConfig, SequenceSlice, StepFailed, TensorGroup
from tests.agent.engine.models import Reference, stage
from tests.agent.engine.threads import ThreadReplica, plan_links, rank_config, run_threads


def run_until_refused(config: RankConfig, request: LinkRank | None = None) -> StatusBoard:
    """Load, try to link, and leave."""
    inbox = Inbox(on_room=lambda: None)
    board = StatusBoard(config, count_queued=inbox.__len__)
    thread = threading.Thread(target=Executor(config, board, inbox).run)
    thread.start()
    if request is not None:
        done = threading.Event()
        inbox.put_link(LinkOrder(request=request, deadline=time.monotonic() + 5, on_done=done.set))
        assert done.wait(10)
    else:
        thread.join(10)
    inbox.close()
    thread.join(10)
    assert board.error is not None
    return board


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"device": "cuda:0"}, "E805", "device cuda:0 is not there: torch sees 0 CUDA devices"),
        ({"context": 10**12}, "E804", "the shard needs"),
    ],
)
def test_a_shard_that_cannot_be_held_is_refused_before_loading(
    change: dict[str, object], code: str, says: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama2")
    config = rank_config(model.spec, whole_extent(model.spec), folder=folder, model_dir=model.path)
    board = run_until_refused(msgspec.structs.replace(config, **change))
    assert board.error is not None
    assert (board.state, board.error.code, board.read_bytes) == ("failed", code, 0)
    assert says in board.error.message


@pytest.mark.parametrize(
    ("layers", "shares", "links", "says"),
    [
        ((2, 4), (1,), {}, "the first stage receives from nobody, every other one"),
        ((0, 4), (1, 1), {}, "needs its tensor-parallel group"),
        ((0, 4), (1, 1), {"group": ("r0s0t1", "r0s0t2")}, "not a member of its group"),
        ((0, 4), (1, 1), {"group": ("r0s0t1", "r0s0t0")}, "is not its tensor index 0"),
        ((0, 4), (1,), {"sends_to": True}, "the last stage sends to nobody"),
    ],
)
def test_links_that_do_not_fit_the_shard_are_refused(
    layers: tuple[int, int],
    shares: tuple[int, ...],
    links: dict[str, tuple[str, ...]],
    says: str,
    reference: Callable[[str], Reference],
    folder: Path,
) -> None:
    model = reference("llama2")
    config = rank_config(model.spec, stage(model.spec, layers, shares)[0], folder=folder, model_dir=model.path)
    link = PipelineLink(name="x>y", other_rank="y", carrier="gloo")
    request = LinkRank(
        generation=2,
        receives_from=None,
        sends_to=(link,) if "sends_to" in links else (),
        group=TensorGroup(name="g", members=links["group"], carrier="gloo") if "group" in links else None,
        timeout_s=5,
    )
    board = run_until_refused(config, request)
    assert board.error is not None
    assert (board.state, board.error.code) == ("loaded", "E802")
    assert says in board.error.message


def test_damaged_weights_show_as_logits_that_are_not_finite(
    reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama2")
    tensors = load_file(model.path / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(model.path / "config.json", folder)
    spec = read_spec(folder)
    stages = [stage(spec, (0, 2)), stage(spec, (2, 4))]
    with run_threads(spec, stages, model_dir=folder, folder=folder) as replica:
        replica.put([SequenceSlice(slot=2, start=0, tokens=[1, 2], samples=True)])
        failed = replica.answers.queue.get(timeout=10)
        assert isinstance(failed, StepFailed)
        assert failed.error.code == "E803"
        assert "slots [2]" in failed.error.message
        board = replica.boards["r0s1t0"]
        assert (board.state, board.error) == ("loaded", failed.error)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sequences_are_forgotten_with_their_links(
    dtype: Dtype, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama2")
    stages = [(whole_extent(model.spec),)]
    config = rank_config(model.spec, stages[0][0], folder=folder, model_dir=model.path, dtype=dtype)
    replica = ThreadReplica([config])
    try:
        replica.link(plan_links(stages, generation=1))
        replica.step([SequenceSlice(slot=0, start=0, tokens=[1, 2, 3], samples=True)])
        replica.link(plan_links(stages, generation=2))
        replica.put([SequenceSlice(slot=0, start=3, tokens=[4], samples=True)])
        failed = replica.answers.queue.get(timeout=10)
        assert isinstance(failed, StepFailed)
        assert "its cache holds 0 positions" in failed.error.message
    finally:
        replica.close()
