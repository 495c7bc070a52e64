from __future__ import annotations

from itertools import pairwise, takewhile

import pytest

from odctl.bench.prompts import WORDS, PromptMaker, WordCost, calibration_prompt, word_cost
from tests.agent.serving.tokenizer import small_tokenizer


def count(text: str) -> int:
    return len(small_tokenizer().encode(text).ids)


def learnt() -> WordCost:
    return word_cost(once=count(calibration_prompt(1)), twice=count(calibration_prompt(2)))


@pytest.mark.parametrize("wanted", [100, 512, 2000])
def test_prompts_have_the_wanted_length_by_the_servers_own_count(wanted: int) -> None:
    maker = PromptMaker(learnt(), seed=3)
    for index in range(5):
        assert count(maker.prompt(index, wanted)) == pytest.approx(wanted, rel=0.03, abs=14)


def test_prompts_share_their_prefix_and_little_else() -> None:
    def prompt(maker: PromptMaker, index: int, group: str = "a") -> list[str]:
        return maker.prompt(index, 500, group=group, shared_tokens=300).split()

    maker = PromptMaker(learnt(), seed=1)
    prompts = [prompt(maker, index) for index in range(6)]
    common = num_shared(*prompts)
    assert count(" " + " ".join(prompts[0][:common])) == pytest.approx(300, rel=0.05)
    assert all(num_shared(a, b) < common + 4 for a, b in pairwise(prompts))
    later = prompt(PromptMaker(learnt(), seed=1, part="round 2"), 0)
    assert all(common <= num_shared(later, each) < common + 4 for each in prompts)
    assert num_shared(prompt(PromptMaker(learnt(), seed=2), 0), prompts[0]) < 4
    assert num_shared(prompt(maker, 0, "b"), prompts[0]) < 4


def num_shared(*texts: list[str]) -> int:
    """Words at the begin that are the same in all."""
    return sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, zip(*texts, strict=False)))


def test_every_word_comes_as_often_as_every_other() -> None:
    text = PromptMaker(WordCost(tokens_per_word=1.0, overhead_tokens=0.0)).prompt(0, 2 * len(WORDS))
    assert sorted(text.split()) == sorted(2 * WORDS)
