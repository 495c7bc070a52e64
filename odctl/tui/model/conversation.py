"""A conversation as the chat screen shows it. Pure: times are handed in."""

from __future__ import annotations

import msgspec

from odctl.tui.model.text import BLANK, Line, Span, line, wrap
from odctl.tui.model.units import plural, seconds_text, tokens_per_s_text


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer. The last has `is_done`, and what the gateway counted."""

    text: str = ""
    is_done: bool = False
    done_reason: str = ""
    num_tokens: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A question and what came of it. Times are seconds of one steady clock."""

    question: str
    asked_at_s: float
    answer: str = ""
    first_at_s: float | None = None
    last_at_s: float = 0.0
    num_pieces: int = 0
    final: Piece | None = None
    error: str = ""
    way_out: str = ""

    @property
    def is_over(self) -> bool:
        return self.final is not None or bool(self.error)


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    turns: tuple[Turn, ...] = ()

    @property
    def is_waiting(self) -> bool:
        return bool(self.turns) and not self.turns[-1].is_over

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """(role, text) of every turn that was answered, for the model to remember."""
        out: list[tuple[str, str]] = []
        for turn in self.turns:
            if turn.final is not None:
                out += [("user", turn.question), ("assistant", turn.answer)]
        return tuple(out)

    def ask(self, question: str, *, now_s: float) -> Conversation:
        return Conversation(turns=(*self.turns, Turn(question=question, asked_at_s=now_s)))

    def take(self, piece: Piece, *, now_s: float) -> Conversation:
        """With one more piece of the answer."""
        turn = self.turns[-1]
        has_text = bool(piece.text)
        return self._with_last(
            msgspec.structs.replace(
                turn,
                answer=turn.answer + piece.text,
                first_at_s=now_s if turn.first_at_s is None and has_text else turn.first_at_s,
                last_at_s=now_s if has_text else turn.last_at_s,
                num_pieces=turn.num_pieces + has_text,
                final=piece if piece.is_done else None,
            )
        )

    def fail(self, error: str, way_out: str) -> Conversation:
        return self._with_last(msgspec.structs.replace(self.turns[-1], error=error, way_out=way_out))

    def _with_last(self, turn: Turn) -> Conversation:
        return Conversation(turns=(*self.turns[:-1], turn))


def conversation_lines(conversation: Conversation, *, width: int) -> tuple[Line, ...]:
    """Questions, answers, and under each answer what it took."""
    lines: list[Line] = []
    for turn in conversation.turns:
        if lines:
            lines.append(BLANK)
        for index, text in enumerate(wrap(turn.question, width - 4)):
            lines.append(line(Span(" ▸ " if index == 0 else "   ", "key"), Span(text, "bold")))
        if turn.answer:
            lines += [line(f"   {text}") for text in wrap(turn.answer.strip(), width - 4)]
        elif not turn.is_over:
            lines.append(line(Span("   …", "dim")))
        if turn.error:
            lines += [line(Span(f"   ✗ {text}", "fault")) for text in wrap(turn.error, width - 6)]
            lines += [line(Span(f"     → {text}", "dim")) for text in wrap(turn.way_out, width - 8) if text]
        if figures := _figures(turn):
            lines.append(line(Span(f"   {figures}", "dim")))
    return tuple(lines)


def _figures(turn: Turn) -> str:
    """`first token 182 ms   41 tokens at 21.3 tok/s`: as seen from here, network included."""
    if turn.first_at_s is None or turn.final is None:
        return ""
    parts = [f"first token {seconds_text(turn.first_at_s - turn.asked_at_s)}"]
    tokens = turn.final.num_tokens or turn.num_pieces
    spent_s = turn.last_at_s - turn.first_at_s
    rate = f" at {tokens_per_s_text((tokens - 1) / spent_s)} tok/s" if tokens > 1 and spent_s > 0 else ""
    parts.append(f"{plural(tokens, 'token')}{rate}")
    if turn.final.done_reason and turn.final.done_reason != "stop":
        parts.append(f"ended by {turn.final.done_reason}")
    return "   ".join(parts)
