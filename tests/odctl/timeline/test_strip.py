"""What a lane's strip is drawn from: the worst of each moment, and what is not known."""

from __future__ import annotations

from odctl.timeline import Silence, fold
from odctl.timeline.strip import conditions
from odctl.timeline.text import GLYPHS, WORDS, legend, offset_text, story_text
from tests.odctl.timeline.events import T0, Journals, killed_rank


def strip(timeline_of: Journals, label: str, *, start_s: float, span_s: float, cells: int, now_s: float) -> str:
    timeline = fold(timeline_of.read())
    lane = next(lane for lane in timeline.lanes if lane.key.label == label)
    found = conditions(lane, start_s=T0 + start_s, span_s=span_s, num_cells=cells, now_s=T0 + now_s)
    return "".join(" " if each is None else GLYPHS[each] for each in found)


def test_a_heal_is_drawn_phase_by_phase_where_there_is_room() -> None:
    drawn = strip(killed_rank(), "h3 r1s1t0", start_s=-1.0, span_s=6.0, cells=12, now_s=10.0)
    # Half a second each: the gateway's word at 0.1, decided at 0.3, links from 2.3 on, over at 3.4.
    assert drawn == "──✗▓▓▓▓↻↻███"


def test_a_heal_within_one_cell_shows_the_fault_and_then_that_it_is_over() -> None:
    assert strip(killed_rank(), "h3 r1s1t0", start_s=-30, span_s=60, cells=6, now_s=40) == "───✗██"


def test_time_to_come_is_blank_and_before_the_first_word_nothing_is_known() -> None:
    drawn = strip(killed_rank(), "h3 r1s1t0", start_s=-120, span_s=240, cells=8, now_s=29)
    assert drawn == "○○──✗   "


def test_since_its_observer_fell_silent_a_lane_is_unknown() -> None:
    told = Journals().fault("h1", 0.0, "F-1", "rank_lost")
    timeline = fold(told.read(), silent={"h1": Silence(since_s=T0 + 10, why="gone")})
    lane = next(lane for lane in timeline.lanes if lane.key.scope == "rank")
    found = conditions(lane, start_s=T0, span_s=20, num_cells=4, now_s=T0 + 20)
    assert found == ("fault", "fault", "unknown", "unknown")


def test_two_troubles_of_one_thing_show_the_worse_one() -> None:
    told = Journals()
    told.fault("h1", 0.0, "W-1", "agent_lost", rank_id="", severity="warning")
    told.fault("h1", 10.0, "F-1", "host_lost", rank_id="")
    assert strip(told, "h3", start_s=0, span_s=20, cells=4, now_s=20) == "▲▲✗✗"


def test_every_condition_has_a_glyph_and_a_word_of_its_own() -> None:
    assert len(set(GLYPHS.values())) == len(GLYPHS) == len(WORDS)
    assert legend() == "─ healthy  ▲ warning  ✗ fault  ▒ diagnosing  ▓ acting  ↻ healing  █ healed  ○ unknown"


def test_a_story_as_text_says_who_saw_decided_and_did_what() -> None:
    story = next(story for story in fold(killed_rank().read()).stories if story.story_id == "F-1")
    text = "\n".join(story_text(story))
    for said in (
        "█ rank_lost of chat r1s1t0 on h3: healed after 3.10 s",
        "began 2023-11-14 22:13:20Z, told by h1, decided by h1, generation 1",
        "    +0.00 s  decided    chat is to be healed: restarting r1s1t0",
        "    ~-0.2 s  detected   the gateway on h2 lost r1s1t0",
        "streams that ended with an error: 4; requests replayed: not reported by these agents",
        "evidence signal: SIGKILL",
    ):
        assert said in text, text
    assert "way out" not in text, "it is over"
    assert offset_text(story, (story.began_s or 0) + 2.0, is_exact=True) == "+2.00"
    assert offset_text(story, (story.began_s or 0) - 0.001, is_exact=True) == "+0.00"
