"""TOML text -> typed values, with every problem at its place (inventory.toml, plan.toml, agent.toml). No I/O."""

from agent.documents.convert import closest, convert
from agent.documents.document import Document, format_key_path, parse_document
from agent.documents.problem import (
    CONTRADICTION,
    MISSING_KEY,
    NOT_ALLOWED,
    SYNTAX,
    UNKNOWN_KEY,
    UNREADABLE,
    WRONG_TYPE,
    DocumentError,
    Problem,
    Span,
)
from agent.documents.scan import KeyPath

__all__ = [
    "CONTRADICTION",
    "MISSING_KEY",
    "NOT_ALLOWED",
    "SYNTAX",
    "UNKNOWN_KEY",
    "UNREADABLE",
    "WRONG_TYPE",
    "Document",
    "DocumentError",
    "KeyPath",
    "Problem",
    "Span",
    "closest",
    "convert",
    "format_key_path",
    "parse_document",
]
