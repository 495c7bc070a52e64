"""Estimates of layouts for one request, each shape once: copies over equal devices are estimated together. Pure."""

from __future__ import annotations

from collections.abc import Hashable

from agent.facts.model import ModelSpec
from agent.planner.calibration import PRIOR, Calibration
from agent.planner.cost import Estimate, StageCosts, estimate_layout
from agent.planner.layout import Layout
from agent.planner.plan import Serving
from agent.planner.rates import LinkTable


class Estimates:
    """What layouts are expected to do, remembered by all that the cost model looks at."""

    def __init__(
        self,
        spec: ModelSpec,
        serving: Serving,
        *,
        prompt_tokens: int,
        answer_tokens: int,
        links: LinkTable,
        calibration: Calibration = PRIOR,
    ) -> None:
        self._spec = spec
        self._serving = serving
        self._prompt_tokens = prompt_tokens
        self._answer_tokens = answer_tokens
        self._links = links
        self._calibration = calibration
        self._known: dict[Hashable, Estimate] = {}
        # A correction may be that of one pair of hosts.
        self._are_links_equal = links.are_equal and not calibration.corrections
        self._costs = StageCosts(spec, links, dtype=serving.dtype, quantisation=serving.quantisation)

    def of(self, layout: Layout) -> Estimate:
        """The estimate of a layout. Layouts of one shape get the very same value."""
        key = self._shape(layout)
        if key not in self._known:
            self._known[key] = estimate_layout(
                self._spec,
                layout,
                self._serving,
                prompt_tokens=self._prompt_tokens,
                answer_tokens=self._answer_tokens,
                links=self._links,
                calibration=self._calibration,
                known=self._costs,
            )
        return self._known[key]

    def _shape(self, layout: Layout) -> Hashable:
        """Layers, shares and kinds of devices; of hosts their names where links differ, else which are the same."""
        hosts: dict[str, int] = {}
        return tuple(
            (
                stage.layers,
                stage.units,
                tuple(
                    (
                        self._costs.kind(place.device),
                        hosts.setdefault(place.host, len(hosts)) if self._are_links_equal else place.host,
                    )
                    for place in stage.places
                ),
            )
            for stage in layout.stages
        )
