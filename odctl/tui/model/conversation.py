"""A conversation as the chat screen shows it. Pure: times are handed in."""

from __future__ import annotations

import msgspec

from odctl.tui.model.text import BLANK, Line, Span, line, wrap
from odctl.tui.model.units import plural, seconds_text, tokens_per_s_text

STOPPED = "stopped"


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer, or of the thoughts before it. The last has `is_done`, and what the gateway counted."""

    text: str = ""
    thinking: str = ""
    is_done: bool = False
    done_reason: str = ""
    num_tokens: int = 0
    """Of the whole answer, thoughts included; 0: not counted."""
    prompt_tokens: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A question and what came of it. Times are seconds of one steady clock."""

    question: str
    asked_at_s: float
    answer: str = ""
    thinking: str = ""
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
    system: str = ""
    """What the model is told before everything else."""
    shows_thinking: bool = False
    """Whether the thoughts of answers that have begun are shown whole."""

    @property
    def is_waiting(self) -> bool:
        return bool(self.turns) and not self.turns[-1].is_over

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """(role, text) of the turns that were answered, or stopped in the answer, for the model to remember."""
        out: list[tuple[str, str]] = []
        for turn in self.turns:
            if turn.final is not None and (turn.answer or turn.final.done_reason != STOPPED):
                out += [("user", turn.question), ("assistant", turn.answer)]
        return tuple(out)

    @property
    def last_answer(self) -> str:
        """The newest answer, or what came of it; empty without one."""
        return next((turn.answer for turn in reversed(self.turns) if turn.answer), "")

    def ask(self, question: str, *, now_s: float) -> Conversation:
        return msgspec.structs.replace(self, turns=(*self.turns, Turn(question=question, asked_at_s=now_s)))

    def take(self, piece: Piece, *, now_s: float) -> Conversation:
        """With one more piece of the answer."""
        turn = self.turns[-1]
        has_text = bool(piece.text or piece.thinking)
        return self._with_last(
            msgspec.structs.replace(
                turn,
                answer=turn.answer + piece.text,
                thinking=turn.thinking + piece.thinking,
                first_at_s=now_s if turn.first_at_s is None and has_text else turn.first_at_s,
                last_at_s=now_s if has_text else turn.last_at_s,
                num_pieces=turn.num_pieces + has_text,
                final=piece if piece.is_done else None,
            )
        )

    def stop(self) -> Conversation:
        """The answer ends here by the reader's hand. What came of it stays."""
        return self._with_last(
            msgspec.structs.replace(self.turns[-1], final=Piece(is_done=True, done_reason=STOPPED))
        )

    def fail(self, error: str, way_out: str) -> Conversation:
        return self._with_last(msgspec.structs.replace(self.turns[-1], error=error, way_out=way_out))

    def cleared(self) -> Conversation:
        """Without its turns; what the model is told before them stays."""
        return msgspec.structs.replace(self, turns=())

    def _with_last(self, turn: Turn) -> Conversation:
        return msgspec.structs.replace(self, turns=(*self.turns[:-1], turn))


def conversation_lines(conversation: Conversation, *, width: int) -> tuple[Line, ...]:
    """Questions, thoughts, answers, and under each answer what it took."""
    lines: list[Line] = []
    if conversation.system:
        for index, text in enumerate(wrap(conversation.system, width - 11)):
            lines.append(line(Span(" system " if index == 0 else " " * 8, "title"), Span(text, "dim")))
    for turn in conversation.turns:
        if lines:
            lines.append(BLANK)
        for index, text in enumerate(wrap(turn.question, width - 4)):
            lines.append(line(Span(" ▸ " if index == 0 else "   ", "key"), Span(text, "bold")))
        lines += _thoughts(turn, shows_all=conversation.shows_thinking, width=width)
        if turn.answer:
            lines += [line(f"   {text}") for text in wrap(turn.answer.strip(), width - 4)]
        elif not turn.is_over:
            lines.append(line(Span("   …", "dim")))
        if turn.error:
            lines += [line(Span(f"   ✗ {text}", "fault")) for text in wrap(turn.error, width - 6)]
            lines += [line(Span(f"     → {text}", "dim")) for text in wrap(turn.way_out, width - 8) if text]
        if figures := _figures(turn):
            lines += [line(Span(f"   {text}", "dim")) for text in wrap(figures, width - 4)]
    return tuple(lines)


def _thoughts(turn: Turn, *, shows_all: bool, width: int) -> list[Line]:
    """Apart from the answer: whole while there is none, one line once it has begun, unless all are wanted."""
    thoughts = turn.thinking.strip()
    if not thoughts:
        return []
    if turn.answer and not shows_all:
        return [line(Span(f"   ~ thought {len(thoughts.split()):,} words (t shows them)", "dim"))]
    return [line(Span(f"   ~ {text}", "dim")) for text in wrap(thoughts, width - 6)]


def _figures(turn: Turn) -> str:
    """`first token 182 ms   41 tokens at 21.3 tok/s`: as seen from here, network included."""
    if turn.first_at_s is None:
        return STOPPED if turn.final is not None and turn.final.done_reason == STOPPED else ""
    final = turn.final
    counted = final.num_tokens if final is not None else 0
    count, noun, unit = (counted, "token", "tok/s") if counted else (turn.num_pieces, "piece", "pieces/s")
    spent_s = turn.last_at_s - turn.first_at_s
    rate = f" at {tokens_per_s_text((count - 1) / spent_s)} {unit}" if count > 1 and spent_s > 0 else ""
    parts = [f"first token {seconds_text(turn.first_at_s - turn.asked_at_s)}", f"{plural(count, noun)}{rate}"]
    if final is not None and final.prompt_tokens:
        parts.append(f"prompt {plural(final.prompt_tokens, 'token')}")
    if turn.error:
        parts.append("cut off")
    elif final is not None and final.done_reason == STOPPED:
        parts.append(STOPPED)
    elif final is not None and final.done_reason not in ("", "stop"):
        parts.append(f"ended by {final.done_reason}")
    return "   ".join(parts)
