"""`make bench-preview`: time per token predicted against measured, for five layouts of one model on a lab.

Prints a table for docs/benchmarks.md. Each layout is applied, warmed up with one answer, then asked REPEATS times.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from odctl.lab import Lab

LAYOUTS = (
    ("one device", ["--max-hosts", "1"]),
    ("pipeline 2", ["--strategy", "pipeline", "--stages", "2"]),
    ("pipeline 3", ["--strategy", "pipeline", "--stages", "3"]),
    ("tensor 2", ["--strategy", "tensor", "--tensor", "2"]),
    ("hybrid 1,2", ["--strategy", "hybrid", "--tensor", "1,2"]),
)
REPEATS = 5
TOKENS = 100
LISTEN = "127.0.0.1:11499"


def main() -> int:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"median of {REPEATS} answers of {TOKENS} tokens after one to warm up; one stream, float32\n")
    print("| layout | predicted ms/token | measured | min..max | measured / predicted |")
    print("|---|---|---|---|---|")
    with Lab(name="preview", num_hosts=3) as lab:
        model, plan = lab.directory / "speaker", lab.directory / "plan.toml"
        odctl(lab, "bootstrap")
        odctl(lab, "models", "make-demo", str(model))
        for name, options in LAYOUTS:
            made = odctl(lab, "plan", str(model), "--context", "512", "--listen", LISTEN, "-o", str(plan), *options)
            predicted_s = made["plan"]["predicted"]["time_per_token_s"]
            odctl(lab, "apply", str(plan), "--yes")
            ask(lab)
            measured = [ask(lab) for _ in range(REPEATS)]
            middle = statistics.median(measured)
            print(
                f"| {name} | {predicted_s * 1e3:.2f} | {middle * 1e3:.2f} | "
                f"{min(measured) * 1e3:.2f}..{max(measured) * 1e3:.2f} | {middle / predicted_s:.2f} |",
                flush=True,
            )
    return 0


def ask(lab: Lab) -> float:
    """Seconds per token after the first, as the gateway counts them."""
    answer = odctl(lab, "run", "speaker", "--raw", "--temperature", "0", "--max-tokens", str(TOKENS), "A class is")
    seconds: float = answer["eval_duration"] / answer["eval_count"] / 1e9
    return seconds


def odctl(lab: Lab, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "odctl", "-i", str(lab.inventory_path), *arguments, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent,
    )
    return json.loads(done.stdout)["data"]


if __name__ == "__main__":
    sys.exit(main())
