"""A step's answer held against what was sent: whose tokens they are, or E810. No I/O."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

from agent.errors import FleetError
from agent.serving.sequence import RunningSequence
from agent.wire.rank import EmbeddedSlice, SampledToken, SequenceSlice, StepDone

Batch = list[tuple[RunningSequence, SequenceSlice]]
"""What one step holds of whom, in the step's order."""


def match_tokens(done: StepDone, batch: Batch) -> list[list[SampledToken]]:
    """The tokens of each slice: after a right guess one more. Raises FleetError E810 when they are others."""
    tokens = iter(done.tokens)
    matched = []
    for _, part in batch:
        drawn: list[SampledToken] = []
        if part.samples:
            num_certain = len(part.tokens) - part.drafts
            for guess in [*part.tokens[num_certain:], None]:
                place = (part.slot, part.start + num_certain + len(drawn))
                sampled = next(tokens, None)
                if sampled is None or (sampled.slot, sampled.position) != place:
                    raise FleetError("E810", f"step {done.step_id} drew {_places(done.tokens)}, {place} missing")
                drawn.append(sampled)
                if sampled.token != guess:
                    break
        matched.append(drawn)
    if next(tokens, None) is not None:
        raise FleetError("E810", f"step {done.step_id} drew {_places(done.tokens)}, which is too much")
    return matched


def match_guesses(done: StepDone, batch: Batch) -> Iterator[list[int]]:
    """What each slice that wants guesses gets. Raises FleetError E810 when they are others', or too many."""
    wanted = [part.guesses_wanted for _, part in batch if part.guesses_wanted]
    guesses = done.guesses or [[] for _ in wanted]
    if len(guesses) != len(wanted) or any(map(operator.lt, wanted, map(len, guesses))):
        raise FleetError("E810", f"step {done.step_id} has {list(map(len, guesses))} guesses, {wanted} were wanted")
    return iter(guesses)


def match_embeddings(done: StepDone, batch: Batch) -> Iterator[EmbeddedSlice]:
    slots = [part.slot for _, part in batch if part.embeds]
    if [each.slot for each in done.embeddings] != slots:
        raise FleetError("E810", f"step {done.step_id} did not embed slots {slots}")
    return iter(done.embeddings)


def _places(tokens: Sequence[SampledToken]) -> list[tuple[int, int]]:
    return [(token.slot, token.position) for token in tokens]
