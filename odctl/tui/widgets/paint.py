"""From lines to strips: what each tone looks like.

Colours are Okabe and Ito's, which colour-blind readers tell apart, until a theme says otherwise (`use_colours`).
Under `NO_COLOR` Textual drops the colours; bold, dim and reverse stay, and no state is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from odctl.tui.model.text import Line, Tone, fit_line

STYLES: dict[Tone, Style] = {
    "plain": Style(),
    "dim": Style(dim=True),
    "bold": Style(bold=True),
    "title": Style(bold=True),
    "key": Style(bold=True, color="#56b4e9"),
    "ok": Style(color="#009e73", bold=True),
    "warn": Style(color="#e69f00", bold=True),
    "fault": Style(color="#ff6a3d", bold=True),
    "heal": Style(color="#56b4e9", bold=True),
    "bar": Style(color="#56b4e9"),
    "kv": Style(color="#cc79a7"),
    "activation": Style(color="#f0e442"),
}
"""The app's theme changes the colours in here, and nothing else does: a terminal shows one theme at a time."""
REVERSE = Style(reverse=True, dim=False)


def use_colours(colours: Mapping[str, str]) -> None:
    """Paint tones in these colours from now on; tones that are not named keep theirs."""
    for tone, style in STYLES.items():
        if tone in colours:
            STYLES[tone] = style + Style(color=colours[tone])


def base_style(widget: Widget) -> Style:
    """What a widget's lines are painted over: Textual keeps this one, `rich_style` it works out for every line."""
    return widget.visual_style.rich_style


def paint(spans: Line, width: int, base: Style, *, is_selected: bool = False) -> Strip:
    """A strip of exactly `width` cells. The selected row is reversed as a whole, whatever its tones."""
    if is_selected:
        text = "".join(span.text for span in fit_line(spans, width))
        return Strip([Segment(text, base + REVERSE)], width)
    return Strip([Segment(span.text, base + STYLES[span.tone]) for span in fit_line(spans, width)], width)
