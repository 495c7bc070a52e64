"""`python -m tests.benchmarks.tui_main`: `tui_app`, started as `odctl` starts its UI."""

from __future__ import annotations

from odctl.tui.responsive import collect_rarely

if __name__ == "__main__":
    collect_rarely()
    from tests.benchmarks.tui_app import main

    main()
