"""`odctl faults --timeline`: spans, what is left out, and that the strips and stories are those of the screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.errors import FleetError
from odctl.cli import main
from odctl.commands.faults import parse_span, select_lanes, timeline_lines
from odctl.fleet.story_reading import Reading
from odctl.timeline import Silence, fold
from tests.odctl.timeline.events import T0, killed_rank


def reading() -> Reading:
    told = killed_rank(h2=-75.0).fault(
        "h1", 500.0, "F-2", "host_lost", rank_id="", message="h2 is silent", host="h2"
    )
    return Reading(timeline=fold(told.read()), now_s=T0 + 600, missing={})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800), ("1.5h", 5400)]
)
def test_spans_are_read(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "0h", "-1h", "1h30m", "yesterday"])
def test_what_is_no_span_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(FleetError, match="no span of time") as caught:
        parse_span(text)
    assert "30m" in caught.value.hint


def test_since_leaves_out_what_ended_before_and_open_what_is_over() -> None:
    lanes = reading().timeline.lanes
    assert [lane.key.label for lane in lanes] == ["h2", "chat", "h3 r1s1t0"]
    assert [lane.key.label for lane in select_lanes(lanes, since_s=T0 + 400, only_open=False)] == ["h2"]
    assert [lane.key.label for lane in select_lanes(lanes, since_s=None, only_open=True)] == ["h2"]
    assert select_lanes(lanes, since_s=None, only_open=False) == lanes


def test_lanes_legend_clocks_and_every_story_are_printed() -> None:
    found = reading()
    text = "\n".join(timeline_lines(found.timeline.lanes, found, since_s=None))
    assert "h3 r1s1t0  ✗██" in text
    assert "▒ diagnosing" in text
    assert "the clock of h2 is -75.0 s off, and put right here" in text
    assert text.index("✗ host_lost of chat on h2: open, fault") < text.index("█ rank_lost of chat r1s1t0 on h3")
    assert "way out: it is restarted in place" in text


def test_a_host_that_never_answered_is_unknown_all_along() -> None:
    timeline = fold({}, silent={"h4": Silence(since_s=None, why="no agent answers on this host")})
    found = Reading(timeline=timeline, now_s=T0, missing={})
    text = "\n".join(timeline_lines(timeline.lanes, found, since_s=T0 - 60))
    assert "○" * 60 in text
    assert "began unknown, seen from here" in text


def test_without_lanes_it_says_that_there_are_no_faults() -> None:
    found = Reading(timeline=fold({}), now_s=T0, missing={})
    assert timeline_lines((), found, since_s=None) == ["no faults"]


def test_bad_spans_and_since_alone_are_usage_errors(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.toml"
    inventory.write_text('[cluster]\nname = "lab"\n[hosts.h1]\nssh = "127.0.0.1"\n')
    for arguments, said in (
        (("--timeline", "--since", "soon"), "no span of time"),
        (("--since", "1h"), "needs `--timeline`"),
    ):
        result = CliRunner().invoke(main, ["-i", str(inventory), "faults", *arguments, "--json"])
        assert result.exit_code == 3, result.output
        assert said in json.loads(result.stdout)["data"]["message"]
