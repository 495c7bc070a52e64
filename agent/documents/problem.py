"""What is wrong with a document, where, and how it is shown. No I/O."""

from __future__ import annotations

import msgspec

from agent.errors import FleetError

UNREADABLE = "E101"
SYNTAX = "E102"
MISSING_KEY = "E103"
UNKNOWN_KEY = "E104"
WRONG_TYPE = "E105"
NOT_ALLOWED = "E106"
CONTRADICTION = "E107"
"""Each value is fine by itself; together they are not."""

SHOWN_COLUMNS = 160
"""A longer source line is cut, so that one generated line does not fill the terminal."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a text: line and column from 1, in characters; `length` stays on that line."""

    line: int
    column: int
    length: int = 1


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One trouble at its place. `label` stands under the caret, `hint` below (`did you mean …?`)."""

    code: str
    message: str
    file: str
    span: Span
    source_line: str = ""
    path: str = ""
    """`deployment.chat.replica`, or empty where the text has no structure yet."""
    label: str = ""
    hint: str = ""

    def render(self) -> str:
        """Several lines without a trailing newline, laid out as rustc does."""
        gutter = " " * len(str(self.span.line))
        place = f"{gutter}--> {self.file}:{self.span.line}:{self.span.column}"
        lines = [f"error[{self.code}]: {self.message}", f"{place}   {self.path}" if self.path else place]
        if self.source_line.strip():
            shown = self.source_line[:SHOWN_COLUMNS]
            before = self.source_line[: self.span.column - 1]
            # Tabs stay tabs, so that the caret stands right however wide the terminal makes them.
            padding = "".join("\t" if character == "\t" else " " for character in before)
            carets = "^" * max(1, min(self.span.length, SHOWN_COLUMNS))
            lines.append(f"{gutter} |")
            lines.append(f"{self.span.line} | {shown}")
            if len(padding) < SHOWN_COLUMNS:
                lines.append(f"{gutter} | {padding}{carets} {self.label}".rstrip())
            elif self.label:
                lines.append(f"{gutter} = {self.label}")
        elif self.label:
            lines.append(f"{gutter} = {self.label}")
        if self.hint:
            lines.append(f"{gutter} = {self.hint}")
        return "\n".join(lines)


class DocumentError(FleetError):
    """All problems of one document, in the order of the text. Its code is that of the first."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        assert problems, "a DocumentError without problems"
        # A missing file sorts like line 1; ties keep the order in which they were found.
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.span.line, problem.span.column)))
        super().__init__(self.problems[0].code, "\n\n".join(problem.render() for problem in self.problems))

    def __str__(self) -> str:
        return self.message
