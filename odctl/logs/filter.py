"""Which entries of a log are shown: `host=gpu* level=warning name=agent lost !heartbeat`. No I/O."""

from __future__ import annotations

import fnmatch
import re
from typing import Literal

import msgspec

from agent.errors import FleetError
from odctl.logs.entry import FOLLOW, LEVEL_WORDS, LEVELS, Level, LogEntry

_TERM = re.compile(r"^(!?)(host|level|name|source)=(.+)$", re.IGNORECASE)


class Word(msgspec.Struct, frozen=True, kw_only=True):
    regex: re.Pattern[str]
    is_inverse: bool


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """`pattern` is a glob over host or source."""

    name: Literal["host", "source"]
    pattern: str
    is_inverse: bool


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Every word must hold; of several `host=` (or `name=`) that are not turned round, one."""

    words: tuple[Word, ...] = ()
    fields: tuple[Field, ...] = ()
    level: Level = "debug"

    def wants_host(self, host: str) -> bool:
        """Whether anything of this host can pass: what is not wanted need not be followed."""
        return self._passes_field("host", host)

    def passes(self, entry: LogEntry) -> bool:
        return (
            LEVELS.index(entry.level) >= LEVELS.index(self.level)
            and self._passes_field("host", entry.host)
            and (entry.source == FOLLOW or self._passes_field("source", entry.source))
            and all(bool(word.regex.search(entry.searched)) != word.is_inverse for word in self.words)
        )

    def _passes_field(self, name: str, value: str) -> bool:
        wanted = [field.pattern for field in self.fields if field.name == name and not field.is_inverse]
        unwanted = [field.pattern for field in self.fields if field.name == name and field.is_inverse]
        if any(fnmatch.fnmatchcase(value, pattern) for pattern in unwanted):
            return False
        return not wanted or any(fnmatch.fnmatchcase(value, pattern) for pattern in wanted)


def parse_log_filter(text: str) -> LogFilter:
    """`host=gpu* level=warning name=agent lost !heartbeat`. Raises FleetError E105 naming the term."""
    words: list[Word] = []
    fields: list[Field] = []
    level: Level = "debug"
    for term in text.split():
        if found := _TERM.match(term):
            is_inverse, name, value = bool(found[1]), found[2].lower(), found[3]
            if name == "level":
                level = _level_of(value, term, is_inverse=is_inverse)
            else:
                kind: Literal["host", "source"] = "host" if name == "host" else "source"
                fields.append(Field(name=kind, pattern=value, is_inverse=is_inverse))
            continue
        pattern = term.removeprefix("!")
        try:
            words.append(Word(regex=re.compile(pattern, re.IGNORECASE), is_inverse=term.startswith("!")))
        except re.error as error:
            raise FleetError(
                "E105", f"`{term}` is no regular expression: {error}", hint="put a backslash before special signs"
            ) from error
    return LogFilter(words=tuple(words), fields=tuple(fields), level=level)


def _level_of(value: str, term: str, *, is_inverse: bool) -> Level:
    if is_inverse or value.lower() not in LEVEL_WORDS:
        raise FleetError(
            "E105", f"`{term}` is no level", hint=f"level= takes {', '.join(LEVELS)}: it and what is worse is shown"
        )
    return LEVEL_WORDS[value.lower()]
