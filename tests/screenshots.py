"""`make screenshots`: SVGs of the real app on a real lab cluster with a running deployment, into screenshots/.

And of the fleet view over a simulated fleet, which says so in its title.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from odctl.lab import Lab
from tests import simulated_screens

ROOT = Path(__file__).parent.parent
LISTEN = "127.0.0.1:11434"
QUESTION = "A class is"


def main() -> int:
    with Lab(name="screens", num_hosts=3) as lab:
        model, plan, other = (lab.directory / name for name in ("speaker", "plan.toml", "other.toml"))
        odctl(lab, "bootstrap")
        odctl(lab, "models", "make-demo", str(model))
        odctl(
            lab, "plan", str(model), "--strategy", "hybrid", "--tensor", "1,2", "--context", "512",
            "--listen", LISTEN, "-o", str(plan),
        )  # fmt: skip
        odctl(lab, "plan", "edit", str(plan), "--move-boundary", "0.0=+1", "-o", str(other))
        odctl(lab, "apply", str(plan), "--yes")
        subprocess.run(
            [
                sys.executable, "-m", "odctl.tui.screenshots", "--inventory", str(lab.inventory_path),
                "--out", str(ROOT / "screenshots"), "--plan", str(plan), "--other", str(other),
                "--question", QUESTION, "--warm-up", "20",
            ],
            check=True,
        )  # fmt: skip
    simulated_screens.main()
    return 0


def odctl(lab: Lab, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "odctl", "-i", str(lab.inventory_path), *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    sys.exit(main())
