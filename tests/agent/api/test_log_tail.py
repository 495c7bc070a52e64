from __future__ import annotations

from pathlib import Path

import pytest

from agent.api.log_tail import BLOCK_BYTES, read_tail


@pytest.mark.parametrize("lines", [0, 1, 3, 5000])
def test_the_last_lines_are_read_across_blocks(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "x.log"
    written = [f"line {number} {'é' * (number % 40)}\n" for number in range(8000)]
    path.write_text("".join(written))
    assert path.stat().st_size > 3 * BLOCK_BYTES
    assert read_tail(path, lines) == "".join(written[-lines:] if lines else [])


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"one\ntwo\nthr\xff")
    assert read_tail(path, 2) == "two\nthr�"


def test_no_file_is_an_empty_log(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "none.log", 5) == ""
