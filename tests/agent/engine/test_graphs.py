"""The GPU's way of running small steps, on a CPU: its buffers, sizes and attention by index, run, not replayed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agent.engine.graphs import Work, cuda_recorder
from agent.wire.rank import SamplingParams, SequenceSlice
from tests.agent.engine.models import VOCAB_SIZE, Reference, stage
from tests.agent.engine.threads import run_threads

MAX_DIFFERENCE = 1e-4


class Recorder:
    """Runs the work again where a GPU would replay it; counts both."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1

        def again() -> None:
            self.replayed += 1
            work()

        return again


def random_tokens(count: int, *, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=count)


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen3", "gemma2"])
def test_graphs_decode_what_transformers_does(
    family: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference(family)
    prompts = {0: random_tokens(5, seed=1), 1: random_tokens(80, seed=2), 3: random_tokens(31, seed=3)}
    record = Recorder()
    stages = [stage(model.spec, (0, 2)), stage(model.spec, (2, 4))]
    with run_threads(model.spec, stages, model_dir=model.path, folder=folder, record=record) as replica:
        made = replica.generate(prompts, 40, chunk=70)
    assert made == {slot: model.generate(prompt, 40) for slot, prompt in prompts.items()}
    # by each stage: 12 rows fill up 16, three fill up 4, and the longest prompt ends alone; 106 are too many
    assert record.recorded == 2 * 3
    assert record.replayed > 2 * 38


def test_drafts_and_blocks_beyond_the_smallest_graph(reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("llama3")
    tokens = random_tokens(420, seed=4)
    record = Recorder()
    with run_threads(
        model.spec, [stage(model.spec, (0, 4))], model_dir=model.path, folder=folder, context=512, record=record
    ) as replica:
        replica.step([SequenceSlice(0, 0, tokens[:240], False)])
        replica.sampler.seen.clear()
        for start, end in ((240, 245), (245, 259), (259, 300), (300, 420)):
            count = end - start
            replica.step([SequenceSlice(0, start, tokens[start:end], True, drafts=min(count - 1, 4))])
        rows = torch.stack([logits for _, logits in replica.sampler.seen])
    ends = torch.tensor([*range(240, 245), *range(254, 259), *range(295, 300), *range(415, 420)])
    assert (rows - model.logits(tokens)[ends]).abs().max().item() < MAX_DIFFERENCE
    assert record.recorded == 3  # 8 rows of 16 blocks, 16 and 64 rows of 32


def test_what_cannot_be_recorded_runs_without(
    reference: Callable[[str], Reference], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = reference("llama3")
    prompt = random_tokens(9, seed=5)
    with run_threads(
        model.spec, [stage(model.spec, (0, 4))], model_dir=model.path, folder=folder, record=refuse
    ) as replica:
        made = replica.generate({2: prompt}, 20, params=SamplingParams())
    assert made[2] == model.generate(prompt, 20)
    warned = [record for record in caplog.records if record.getMessage() == "steps run without graphs"]
    assert len(warned) == 1
    assert "not permitted" in warned[0].__dict__["reason"]


def test_a_group_sums_without_graphs(reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("llama3")
    prompt = random_tokens(9, seed=6)
    record = Recorder()
    stages = [stage(model.spec, (0, 4), (3, 1))]
    with run_threads(model.spec, stages, model_dir=model.path, folder=folder, record=record) as replica:
        assert replica.generate({1: prompt}, 6)[1] == model.generate(prompt, 6)
    assert record.recorded == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA device")
def test_a_recorded_graph_computes_over_new_inputs() -> None:
    device = torch.device("cuda:0")
    numbers, doubled = torch.zeros(4, device=device), torch.zeros(4, device=device)

    def work() -> None:
        doubled.copy_(numbers * 2)

    again = cuda_recorder(device)(work)
    numbers.copy_(torch.arange(4.0))
    again()
    assert doubled.tolist() == [0.0, 2.0, 4.0, 6.0]
