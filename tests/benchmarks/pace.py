"""How quick this machine is at the moment: shared ones change by a third within minutes, and say nothing of it."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import torch

from agent.engine.decoder import Decoder
from agent.engine.device_probe import seconds_of
from agent.engine.layer_steps import decoding, step_through
from agent.engine.random_weights import random_weights
from agent.models.spec import read_spec
from agent.planner.layout import cut_shares, extent_of

SPAN_S = 0.7
"""Of one core."""
CONTEXT = 128


class Pace:
    """Steps of a small decoder, as ranks take them, on every core in turn."""

    def __init__(self, model: Path) -> None:
        """`model` is a directory; its weights have no meaning here and are not read."""
        torch.set_num_threads(1)
        spec = read_spec(model)
        extent = extent_of(spec, (0, spec.num_layers), cut_shares(spec, [spec.num_kv_heads])[0])
        kind, device = torch.bfloat16, torch.device("cpu")
        with torch.inference_mode():
            weights = random_weights(spec, extent, kind=kind, device=device, quantisation="none")
            decoder = Decoder(
                spec, extent, weights, context=CONTEXT, kind=kind, device=device, on_layer=lambda: None
            )
            slices = decoding(1, context=CONTEXT)
            self._step = step_through(decoder, spec, extent, slices, device=device, kind=kind)

    def measure(self) -> float:
        """Steps a second of one core, a mean over all of them."""
        cores = os.sched_getaffinity(0)
        try:
            return statistics.fmean(self._of(core) for core in sorted(cores))
        finally:
            os.sched_setaffinity(0, cores)

    def _of(self, core: int) -> float:
        os.sched_setaffinity(0, {core})
        with torch.inference_mode():
            return 1.0 / seconds_of(self._step, torch.device("cpu"), SPAN_S)
