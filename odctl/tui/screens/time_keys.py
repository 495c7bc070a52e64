"""The keys of time. They have priority where time stands or plays, and are the screens' own in a live session.

They belong into the list of whichever part of the app has other uses of these keys: of two lists along a class's
bases, Textual takes for a key only what the later one says.
"""

from __future__ import annotations

from textual.binding import Binding, BindingType

TIME_KEYS: tuple[BindingType, ...] = (
    Binding("T", "time_keys", "Stop the clock", id="time.keys", show=False),
    Binding("space", "time_toggle", "Pause or play", id="time.toggle", show=False, priority=True),
    Binding(
        "comma,left_square_bracket",
        "time_step(-1)",
        "A moment back",
        key_display=", [",
        id="time.before",
        show=False,
        priority=True,
    ),
    Binding(
        "full_stop,right_square_bracket",
        "time_step(1)",
        "A moment on",
        key_display=". ]",
        id="time.next",
        show=False,
        priority=True,
    ),
    Binding("plus", "time_speed(1)", "Faster", key_display="+", id="time.faster", show=False, priority=True),
    Binding("minus", "time_speed(-1)", "Slower", key_display="-", id="time.slower", show=False, priority=True),
    Binding("g", "time_ask", "Go to a time", id="time.go", show=False, priority=True),
    Binding("L", "time_end", "Live, or the recording's end", id="time.end", show=False, priority=True),
)
