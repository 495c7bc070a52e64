"""A request in a slot: how far it is computed, and which blocks hold it. No I/O."""

from __future__ import annotations

from agent.planner.plan import BLOCK_TOKENS
from agent.serving.blocks import BlockTable, extend_keys
from agent.serving.request import Request
from agent.serving.speculation import DraftLength, PromptLookup


class RunningSequence:
    """`computed` positions are in the KV cache or on their way there, guesses left out.

    While `computed` is less than the tokens that are known, the next of them can be sent, whatever is in flight:
    only the step after a draw needs a result.
    """

    def __init__(self, request: Request, slot: int, *, max_drafts: int) -> None:
        self.request = request
        self.slot = slot
        self.table: BlockTable | None = None
        """None until it starts."""
        self.num_tokens = len(request.prompt) + len(request.generated)
        """Known ones: the prompt and what was drawn."""
        self.computed = 0
        self.shared = 0
        """Positions that it found computed by others."""
        self.chunk = 0
        self.is_begun = False
        """Its first slice was sent."""
        self.num_in_flight = 0
        self.last_step = -1
        self.num_published = 0
        self.is_cancelled = False
        self.keys: list[bytes] = []
        """Of its full blocks, as far as they were needed."""
        self.draft_length = DraftLength(max_drafts)
        self.drafted: list[int] = []
        """What a draft model takes the next tokens to be, since the last draw."""
        self._lookup: PromptLookup | None = None

    @property
    def importance(self) -> tuple[int, int]:
        """Smaller is more important: by priority, then by arrival."""
        return self.request.priority, self.request.turn

    @property
    def num_pending(self) -> int:
        return self.num_tokens - self.computed

    @property
    def is_started(self) -> bool:
        return self.table is not None

    @property
    def is_decoding(self) -> bool:
        """Its next tokens come of steps of one row, guesses left out."""
        return self.is_started and self.num_pending <= 1 and not self.request.embeds

    @property
    def is_ready(self) -> bool:
        """It decodes, and no result is awaited."""
        return self.is_decoding and self.is_begun and self.num_pending == 1 and not self.num_in_flight

    def tokens(self, begin: int, end: int) -> list[int]:
        """Known tokens of these positions."""
        prompt, generated = self.request.prompt, self.request.generated
        if begin >= len(prompt):
            return generated[begin - len(prompt) : end - len(prompt)]
        return [*prompt[begin:end], *generated[: max(0, end - len(prompt))]]

    def shareable_keys(self) -> list[bytes]:
        """Keys of the full blocks before its last known token: that one is always computed."""
        self._extend_keys((self.num_tokens - 1) // BLOCK_TOKENS)
        return self.keys[: (self.num_tokens - 1) // BLOCK_TOKENS]

    def complete_keys(self) -> list[tuple[int, bytes]]:
        """(block, key) of those blocks that are complete since the last call."""
        if self.computed < (self.num_published + 1) * BLOCK_TOKENS:
            return []
        assert self.table is not None, "only what has started has blocks"
        # a stop string may have cut off tokens that were drawn
        num_known = len(self.request.prompt) + len(self.request.generated)
        begin, end = self.num_published, min(self.computed, num_known) // BLOCK_TOKENS
        if begin >= end:
            return []
        self._extend_keys(end)
        self.num_published = end
        return [(self.table.blocks[index], self.keys[index]) for index in range(begin, end)]

    def look_up(self, count: int) -> list[int]:
        """Up to `count` tokens after the known ones, as they followed the same words before."""
        if self._lookup is None:
            self._lookup = PromptLookup(self.request.prompt)
        self._lookup.extend(self.tokens(len(self._lookup), self.num_tokens))
        return self._lookup.guess(count)

    def _extend_keys(self, num_blocks: int) -> None:
        if len(self.keys) < num_blocks:
            begin = len(self.keys) * BLOCK_TOKENS
            extend_keys(self.keys, self.tokens(begin, num_blocks * BLOCK_TOKENS))
