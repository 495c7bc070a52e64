"""The token's file is made once, read again, and refused when it is not its owner's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import FleetError
from odctl.web.token_file import new_token, read_token


def test_a_file_that_is_not_there_is_made_for_its_owner_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == token
    assert len(token) >= 43
    assert token != new_token()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(new_token())
    path.chmod(mode)
    with pytest.raises(FleetError, match="is not yours alone to read") as caught:
        read_token(path)
    assert f"chmod 600 {path}" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 31, "a token of words and of more than 32 characters", "é" * 40]
)
def test_a_file_without_a_token_says_what_one_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(FleetError, match="holds no token: at least 32"):
        read_token(path)


def test_a_place_that_cannot_hold_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="cannot make"):
        read_token(tmp_path / "none" / "token")
    with pytest.raises(FleetError, match="is no file"):
        read_token(tmp_path)
