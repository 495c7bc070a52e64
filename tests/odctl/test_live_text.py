"""Blocks of text over each other on a terminal, behind each other elsewhere."""

from __future__ import annotations

import io
import os

from odctl.live_text import LiveText


def shown(*blocks: str, size: tuple[int, int] = (20, 10)) -> str:
    stream = io.StringIO()
    live = LiveText(stream, in_place=True, size=lambda: os.terminal_size(size))
    for block in blocks:
        live.show(block)
    return stream.getvalue()


def test_without_a_terminal_blocks_are_plain_lines() -> None:
    stream = io.StringIO()
    live = LiveText(stream, in_place=False)
    live.show("one\ntwo")
    live.show("three\n")
    assert stream.getvalue() == "one\ntwo\n\nthree\n"


def test_a_block_takes_the_place_of_the_one_before() -> None:
    written = shown("one\ntwo", "three\nfour")
    assert written.startswith("\x1b[H\x1b[2Jone\x1b[K\ntwo\x1b[K\n\x1b[J")
    assert written.endswith("\x1b[2Fthree\x1b[K\nfour\x1b[K\n\x1b[J")


def test_what_does_not_fit_is_cut_and_said() -> None:
    written = shown("\n".join(f"line {index}" for index in range(30)), size=(50, 10))
    assert "line 7" in written
    assert "line 8" not in written
    assert "… 22 more lines" in written
    assert written.count("\n") == 9, "the last line of the terminal is left for the cursor"
    assert "abcdefgh…" in shown("abcdefghijklmno", size=(9, 5)).replace("\x1b[K", "")[:40]


def test_a_resized_terminal_is_cleared() -> None:
    sizes = iter([(40, 10), (30, 10), (30, 10)])
    stream = io.StringIO()
    live = LiveText(stream, in_place=True, size=lambda: os.terminal_size(next(sizes)))
    for block in ("one", "two", "three"):
        live.show(block)
    assert stream.getvalue().count("\x1b[2J") == 2
    assert "\x1b[1Fthree" in stream.getvalue()
