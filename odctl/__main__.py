"""`odctl` and `python -m odctl`."""

from __future__ import annotations

from odctl.cli import main

if __name__ == "__main__":
    main(prog_name="odctl")
