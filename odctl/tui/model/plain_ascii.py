"""The screen in ASCII: one table of replacements, each as wide as the glyph that it stands for."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from rich.cells import cell_len

UNKNOWN = "?"
_SAME_WIDTH = {
    # States, which also have a word each.
    "●": "*",
    "▲": "!",
    "✗": "x",
    "○": "o",
    "↻": "@",
    "✓": "+",
    "‖": "=",
    "◉": "0",
    "◆": "#",
    "◦": ".",
    "•": "*",
    "·": ".",
    # Bars: full, three shades, eighths from the left.
    "█": "#",
    "▓": "%",
    "▒": "=",
    "░": "-",
    "▉": "#",
    "▊": "#",
    "▋": "+",
    "▌": "+",
    "▍": "-",
    "▎": "-",
    "▏": ".",
    # Strips: eighths from below.
    "▁": "_",
    "▂": ".",
    "▃": "-",
    "▄": ":",
    "▅": "=",
    "▆": "+",
    "▇": "*",
    # Arrows and signs.
    "▸": ">",
    "▹": ">",
    "▶": ">",
    "◀": "<",
    "►": ">",
    "◄": "<",
    "▼": "v",
    "▾": "v",
    "▴": "^",
    "△": "^",
    "▽": "v",
    "→": ">",
    "←": "<",
    "↑": "^",
    "↓": "v",
    "↔": "-",
    "⏎": "<",
    "⌫": "<",
    "…": "~",
    "—": "-",
    "–": "-",
    "‐": "-",
    "−": "-",
    "×": "x",
    "±": "~",
    "≈": "~",
    "≤": "<",
    "≥": ">",
    "≠": "!",
    "Δ": "D",
    "µ": "u",
    "μ": "u",
    "°": "'",
    "²": "2",
    "³": "3",
    "½": "%",
    "∞": "8",
    "Σ": "S",
    "σ": "s",
    "“": '"',
    "”": '"',
    "„": '"',
    "‘": "'",
    "’": "'",
    "«": "<",
    "»": ">",
    "\u00a0": " ",
    # What borders and scroll bars of the toolkit are made of.
    "▔": "-",
    "▀": '"',
    "▐": "|",
    "▕": "|",
    "▖": ".",
    "▗": ".",
    "▘": "'",
    "▝": "'",
    "▙": "+",
    "▛": "+",
    "▜": "+",
    "▟": "+",
    "▚": "\\",
    "▞": "/",
    "■": "#",
    "□": "o",
    "▪": "#",
    "⭘": "o",
    "❯": ">",
    "❮": "<",
}
_WIDE = {"🔎": "/ "}
_BRAILLE = range(0x2800, 0x2900)
_BRAILLE_STEPS = " ..::**##"
"""By the number of dots."""
_BOX = range(0x2500, 0x2580)


@lru_cache(maxsize=4096)
def ascii_text(text: str) -> str:
    """The text in characters from space to `~`, in as many cells as before."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_replaced(character) for character in text)


@lru_cache(maxsize=4096)
def _replaced(character: str) -> str:
    if " " <= character <= "~":
        return character
    if found := _SAME_WIDTH.get(character) or _WIDE.get(character):
        return found
    code = ord(character)
    if code in _BRAILLE:
        return _BRAILLE_STEPS[(code - _BRAILLE.start).bit_count()]
    if code in _BOX:
        return _box(unicodedata.name(character, ""))
    # A letter with an accent is better than a question mark.
    plain = "".join(part for part in unicodedata.normalize("NFKD", character) if " " <= part <= "~")
    width = cell_len(character)
    return plain if plain and len(plain) == width else UNKNOWN * width


def _box(name: str) -> str:
    """A line of a box: corners and crossings are `+`."""
    if "DIAGONAL" in name:
        return "/"
    has_vertical = any(word in name for word in ("VERTICAL", "UP", "DOWN"))
    has_horizontal = any(word in name for word in ("HORIZONTAL", "LEFT", "RIGHT"))
    if has_vertical and has_horizontal:
        return "+"
    return "|" if has_vertical else "-"
