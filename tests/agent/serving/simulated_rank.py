"""A test oracle: what a rank would hold in its KV blocks, and what a deterministic model would draw.

Not an engine. The cell of a position holds a digest of all tokens up to it, as keys and values depend on all of
them: a block shared wrongly, overwritten while shared, or never computed shows at the first read.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.planner.plan import BLOCK_TOKENS
from agent.wire.rank import EmbeddedSlice, SampledToken, SequenceSlice, Step, StepDone

Cell = int


def next_token(tokens: Sequence[int]) -> int:
    """The model: looks back two tokens and knows few words, so that its texts repeat soon."""
    return 10 + (sum(tokens[-2:]) * 2 + 1) % 3


def generate(prompt: Sequence[int], count: int, end_tokens: frozenset[int] = frozenset()) -> list[int]:
    """What a request gets when it is alone."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
        if tokens[-1] in end_tokens:
            break
    return tokens[len(prompt) :]


class SimulatedRank:
    """Executes steps in order, as every rank does, and checks what it is told."""

    def __init__(self, *, num_blocks: int, slots: int, wrong_guess_every: int = 0, context: int = 1 << 20) -> None:
        self.num_blocks = num_blocks
        self._context = context
        self._wrong_guess_every = wrong_guess_every
        """Of so many guesses of the draft model, the last one is wrong; 0: none is."""
        self.num_computed = 0
        """Rows of all steps."""
        self._cells: dict[tuple[int, int], Cell] = {}
        self._tables: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        self._tokens: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        self._expected_step = 0

    def execute(self, step: Step) -> StepDone:
        assert step.step_id == self._expected_step
        self._expected_step += 1
        assert len({part.slot for part in step.slices}) == len(step.slices), "a slot twice in one step"
        for part in step.slices:
            self._begin(part)
        written = [cell for part in step.slices for cell in self._write(part)]
        assert len(written) == len(set(written)), "two sequences write to the same place in one step"
        for part in step.slices:
            self._read(part)
        drawn = {part.slot: self._draw(part) for part in step.slices if part.samples}
        return StepDone(
            step_id=step.step_id,
            tokens=[token for tokens in drawn.values() for token in tokens],
            embeddings=[EmbeddedSlice(slot=part.slot, values=b"\0") for part in step.slices if part.embeds],
            guesses=[self._guess(part, drawn[part.slot]) for part in step.slices if part.guesses_wanted],
        )

    def _begin(self, part: SequenceSlice) -> None:
        table = self._tables[part.slot]
        if part.params is not None:
            table.clear()
            assert part.start == len(part.history)
            assert part.start % BLOCK_TOKENS == 0, "a shared prefix is whole blocks"
            self._tokens[part.slot] = list(part.history)
        else:
            assert not part.history
        assert all(0 <= block < self.num_blocks for block in part.new_blocks)
        table.extend(part.new_blocks)
        assert len(set(table)) == len(table)
        assert part.tokens, "an empty slice"
        assert part.start + len(part.tokens) <= len(table) * BLOCK_TOKENS, "positions without a block"
        assert part.drafts < len(part.tokens)
        assert part.start <= len(self._tokens[part.slot]), "a position was skipped"

    def _write(self, part: SequenceSlice) -> list[tuple[int, int]]:
        tokens = self._tokens[part.slot]
        del tokens[part.start :]
        written = []
        for position, token in enumerate(part.tokens, part.start):
            tokens.append(token)
            place = self._place(part.slot, position)
            self._cells[place] = hash(tuple(tokens))
            written.append(place)
        self.num_computed += len(written)
        return written

    def _read(self, part: SequenceSlice) -> None:
        tokens = self._tokens[part.slot]
        for position in range(len(tokens)):
            cell = self._cells.get(self._place(part.slot, position))
            assert cell == hash(tuple(tokens[: position + 1])), f"slot {part.slot}, position {position}"

    def _draw(self, part: SequenceSlice) -> list[SampledToken]:
        tokens, drawn = self._tokens[part.slot], []
        for length in range(len(tokens) - part.drafts, len(tokens) + 1):
            token = next_token(tokens[:length])
            drawn.append(SampledToken(slot=part.slot, position=length, token=token))
            if length < len(tokens) and tokens[length] != token:
                break
        return drawn

    def _guess(self, part: SequenceSlice, drawn: list[SampledToken]) -> list[int]:
        """Where the draft model's keys go must belong to the sequence: they are written over, and spoilt."""
        assert part.samples, "guesses behind nothing"
        position = drawn[-1].position
        known = [*self._tokens[part.slot][:position], drawn[-1].token]
        end = min(position + part.guesses_wanted, self._context)
        assert end <= len(self._tables[part.slot]) * BLOCK_TOKENS, "guesses without a block"
        guesses: list[int] = []
        for index in range(1, end - position + 1):
            token = next_token([*known, *guesses])
            is_wrong = self._wrong_guess_every and index % self._wrong_guess_every == 0
            guesses.append(99 if is_wrong else token)
        return guesses

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        return self._tables[slot][position // BLOCK_TOKENS], position % BLOCK_TOKENS
