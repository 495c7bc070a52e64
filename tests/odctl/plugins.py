"""A strategy plugin as an installer leaves it, for tests."""

from __future__ import annotations

from pathlib import Path

HALVES = """
from agent.planner.layout import Layout, StageLayout

class Halves:
    '''Half of the layers on the last device, half on the first.'''

    name = "halves"

    def propose(self, problem):
        count, units = problem.spec.num_layers, (problem.spec.num_kv_heads,)
        if len(problem.places) < 2:
            return []
        first, last = problem.places[-1], problem.places[0]
        return [Layout(stages=(
            StageLayout(layers=(0, count // 2), places=(first,), units=units),
            StageLayout(layers=(count // 2, count), places=(last,), units=units),
        ))]
"""


def write_distribution(
    folder: Path,
    source: str,
    *,
    name: str = "halves",
    distribution: str = "odctl-halves",
    target: str = "Halves",
) -> None:
    """A module and its metadata with one entry point, `name`; `folder` is to be on sys.path."""
    module = f"{distribution}_{folder.name}".replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    metadata = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(f"[odctl.strategies]\n{name} = {module}:{target}\n")
