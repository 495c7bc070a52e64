from __future__ import annotations

from pathlib import Path

import pytest

from agent.api.log_follow import MAX_BYTES, LogFollower


def follower(directory: Path, *, tail: int = 2) -> LogFollower:
    return LogFollower(lambda: sorted((path.stem, path) for path in directory.glob("*.log")), tail=tail)


def told(follower: LogFollower) -> list[tuple[str, tuple[str, ...]]]:
    return [(news.name, news.lines) for news in follower.look()]


def test_the_past_comes_first_and_then_what_is_added(tmp_path: Path) -> None:
    agent, rank = tmp_path / "agent.log", tmp_path / "rank.log"
    agent.write_text("one\ntwo\nthree\n")
    rank.write_text("")
    following = follower(tmp_path)
    first = following.look()
    assert [(news.name, news.lines, news.is_past) for news in first] == [("agent", ("two", "three"), True)]
    assert told(following) == []
    with agent.open("a") as file:
        file.write("four\nfi")
    assert told(following) == [("agent", ("four",))]
    with agent.open("a") as file:
        file.write("ve\n")
    rank.write_text("loaded\n")
    assert told(following) == [("agent", ("five",)), ("rank", ("loaded",))]


def test_a_log_that_appears_later_is_told_from_its_start(tmp_path: Path) -> None:
    following = follower(tmp_path, tail=1)
    assert told(following) == []
    (tmp_path / "gateway.log").write_text("a\nb\nc\n")
    assert told(following) == [("gateway", ("a", "b", "c"))]


def test_a_rotated_log_goes_on_in_its_new_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("old\n")
    following = follower(tmp_path)
    assert told(following) == [("agent", ("old",))]
    path.rename(tmp_path / "agent.log.1")
    assert told(following) == []
    path.write_text("new\n")
    assert told(following) == [("agent", ("new",))]


def test_a_log_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("a long first line\n")
    following = follower(tmp_path)
    following.look()
    with path.open("r+") as file:
        file.truncate(0)
        file.write("anew\n")
    assert told(following) == [("agent", ("anew",))]


def test_what_pours_is_skipped_and_said_and_no_line_is_told_in_half(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("")
    following = follower(tmp_path)
    following.look()
    lines = [f"{number:07d}" for number in range(100_000)]
    path.write_text("".join(f"{line}\n" for line in lines))
    (news,) = following.look()
    assert news.skipped_bytes + 8 * len(news.lines) == path.stat().st_size
    assert 0 < 8 * len(news.lines) <= MAX_BYTES
    assert list(news.lines) == lines[-len(news.lines) :]


@pytest.mark.parametrize("text", ["\n", "one\x0cpart\u2028of it\n"])
def test_lines_end_at_newlines_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.log"
    path.write_text("")
    following = follower(tmp_path)
    following.look()
    path.write_text(text)
    assert told(following) == [("agent", (text.removesuffix("\n"),))]
