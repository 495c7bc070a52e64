"""English text that every Python installation has: the language reference and the docstrings of the library."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from agent.errors import FleetError

MIN_CORPUS_CHARS = 200_000
_SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "encodings",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "__pycache__",
}
_CODE_LINE = re.compile(r"^\s*(>>>|\.\.\.|\$|#|@)|[=*~^-]{4,}|[{}<>|\\]|^\s*[\w.]+\(.*\)\s*$")
_MARKUP = (
    (re.compile(r":\w+:`~?([^`]*)`"), r"\1"),
    (re.compile(r"``([^`]*)``"), r"\1"),
    (re.compile(r"[`*“”]"), ""),
    (re.compile(r"[‘’]"), "'"),
    (re.compile(r"::"), ":"),
    (re.compile(r"\s+"), " "),
)
_PROSE = re.compile(r"^[A-Z][^\n]*[a-z][^\n]*[.:!?]$")
_MIN_WORDS = 8
_MIN_LETTERS = 0.75


def read_documents() -> list[list[str]]:
    """Documents as lists of prose paragraphs, always in the same order.

    Raises FleetError E902 where Python was installed without its library's text.
    """
    documents = [paragraphs for text in _texts() if (paragraphs := _prose(text))]
    size = sum(len(paragraph) for document in documents for paragraph in document)
    if size < MIN_CORPUS_CHARS:
        raise FleetError(
            "E902",
            f"Python's own documentation has only {size} characters here, {MIN_CORPUS_CHARS} are needed",
            hint="use a Python with its standard library's sources and pydoc_data",
        )
    return documents


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_path("stdlib"))
    for path in _modules(library):
        yield "\n\n".join(_docstrings(path))


def _modules(package: Path) -> Iterator[Path]:
    for path in sorted(package.iterdir()):
        if path.suffix == ".py":
            yield path
        elif path.is_dir() and path.name not in _SKIPPED:
            yield from _modules(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template or a sample of another encoding, not a module
    # definitions inside functions and branches say little, and looking there takes most of the time
    waiting: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while waiting:
        part = waiting.pop()
        text = ast.get_docstring(part)
        if text:
            yield text
        if isinstance(part, ast.Module | ast.ClassDef):
            inner = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            waiting += [statement for statement in reversed(part.body) if isinstance(statement, inner)]


def _prose(text: str) -> list[str]:
    """Paragraphs that are sentences: no code, no tables, no lists of names."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        if any(_CODE_LINE.search(line) for line in block.splitlines()):
            continue
        paragraph = block
        for pattern, replacement in _MARKUP:
            paragraph = pattern.sub(replacement, paragraph)
        paragraph = paragraph.strip()
        letters = sum(char.isalpha() or char == " " for char in paragraph)
        is_wordy = len(paragraph.split()) >= _MIN_WORDS and letters >= _MIN_LETTERS * len(paragraph)
        if is_wordy and _PROSE.match(paragraph):
            paragraphs.append(paragraph)
    return paragraphs
