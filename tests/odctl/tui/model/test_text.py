from __future__ import annotations

from odctl.tui.model.text import Span, line_text, merged


def test_merging_keeps_every_character_and_drops_no_tone_that_is_seen() -> None:
    spans = (Span(" "), Span("gpu01", "bold"), Span("  ", "plain"), Span("●", "ok"), Span(" ok", "ok"), Span("x"))
    found = merged(spans)
    assert line_text(found) == line_text(spans)
    assert found == (Span(" "), Span("gpu01  ", "bold"), Span("● ok", "ok"), Span("x"))
    assert merged(()) == ()
