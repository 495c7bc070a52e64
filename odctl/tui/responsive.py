"""How the UI's process shares its interpreter, so that a key is answered soon while ten thousand hosts come in."""

from __future__ import annotations

import gc
import sys

GIL_TURN_S = 0.0002
"""How long the feed's thread may keep the interpreter while the screen's waits for it, which it does some twenty
times a key: with Python's own 5 ms, a key that met a frame of ten thousand hosts came a tenth of a second late."""
YOUNG_OBJECTS = 50_000
"""From so many new objects on the garbage collector comes by itself, as it does from 700 on otherwise: a key's
painting makes thousands, and was held up by it for 10 ms, now and then for 80."""
ENOUGH_GARBAGE = 20_000
"""New objects for which the collector is called between two snapshots. It walks every new column of ten thousand
figures, too, which takes it 4 to 10 ms: not worth it for a tick's thousand."""


def collect_rarely() -> None:
    """For this whole process; called before the UI is imported, which the collector would walk many times."""
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)


def answer_keys_first() -> None:
    """For this whole process; called once all is imported, which the collector then never looks at again."""
    sys.setswitchinterval(GIL_TURN_S)
    collect_rarely()
    gc.freeze()


def collect_young() -> None:
    """Garbage of the last moments, if there may be much: when a snapshot has been drawn, and nobody waits."""
    if gc.get_count()[0] >= ENOUGH_GARBAGE:
        gc.collect(1)
