"""Makes lab hosts of one machine unequal: the engine of each computes for a share of the time.

Not by the kernel's means. Its quotas of CPU time are charged by a timer, every 4 ms where HZ=250, and saved up
meanwhile: a stage that computes for 3 ms and then waits for the others is never stopped by a quota of a third of a
core, and one that computes without a pause is, for 7 ms at a time. Processes that are frozen and thawed every two
milliseconds pay for each of their threads each time: a rank, which has many, had 0.3 of a core where a probe had
0.4.
"""

from __future__ import annotations

import shutil
from pathlib import Path

STRETCH = Path(__file__).with_name("stretch.py")
BEGIN = 'if __name__ == "__main__":\n'


def slow_host(prefix: Path, share: float, *, usual_s: float = 0.0) -> None:
    """Engines that the agent of this prefix starts from now on compute for `share` of the time.

    With `usual_s` (`stretch.usual_pace_s`), as if this machine's memory were always as quick as that.
    """
    engine = prefix / "current" / "agent" / "engine"
    shutil.copy(STRETCH, engine / STRETCH.name)
    main = engine / "__main__.py"
    text = main.read_text()
    assert text.count(BEGIN) == 1, main
    call = f"    from agent.engine.{STRETCH.stem} import stretch_engine\n\n    stretch_engine({share}, {usual_s})\n"
    # A new file: releases of one lab may share the old one.
    main.unlink()
    main.write_text(text.replace(BEGIN, BEGIN + call))
