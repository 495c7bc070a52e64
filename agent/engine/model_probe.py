"""A rehearsal: how long the engine's own decoder takes in a model's widths, before anything is applied.

Weights have no meaning, so none are fetched; layers are as many as it takes to leave no cache warm, up to the
model's own. A share of heads and columns is measured beside whole layers where they can be halved.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import msgspec
import torch

from agent.engine.decoder import Decoder
from agent.engine.device_probe import KINDS, LONG_ROUND_S, check_room, seconds_in_turn
from agent.engine.layer_steps import Act, blocks_of, decoding, prompt, step_through
from agent.engine.random_weights import random_weights
from agent.engine.sampling import Sampler
from agent.facts.model import DTYPE_BYTES
from agent.facts.probe import HeadProbe, ModelProbe, RestProbe, StepProbe
from agent.planner.layout import cut_shares, extent_of
from agent.planner.shards import ShardExtent, shard_weight_bytes
from agent.wire.probe import ModelProbeConfig, ModelReport
from agent.wire.rank import SamplingParams, SequenceSlice

DECODING_SEQUENCES = (1, 2, 4, 8)
"""A few rows need not cost what lies between one and many.

Another kernel multiplies them. Measured on an AMD EPYC in float32: 1.5 ms for one row, 3.4 for two, 4.2 for four,
4.5 for eight.
"""
DECODE_CONTEXT = 256
PROMPT_ROWS = (31, 63, 127)
"""Rows of chunks; the longest is what the plan lets a step have.

Uneven, as a prompt's last chunk mostly is: kernels fill it up and cut their results, and attention has a tile that
is not full. Measured, 127 rows take 8 to 10% longer than 128.
"""
IDLE_S = (0.002, 0.01, 0.05)
REST_REPEATS = 8
ROUNDS = 3
"""Every point is measured so many times, all of them in turn, for one of a probe's spans each.

A machine's pace changes within seconds where others share its memory: measured one after the other, points would
each say what one moment was like.
"""
MIN_LAYERS = 2


def measure_model(config: ModelProbeConfig) -> ModelReport:
    """Raises FleetError E804 or E805 when the device has no room or is not there."""
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    with torch.inference_mode():
        halves = (1, 2) if config.order.model.num_kv_heads % 2 == 0 else (1,)
        whole, *shares = [_Rehearsal(config, parts).measure() for parts in halves]
        # A rest empties caches of code as much as of weights: measured, it was the same for half a layer.
        shares = [msgspec.structs.replace(each, rests=whole.rests) for each in shares]
        return ModelReport(models=(whole, *shares))


class _Rehearsal:
    """Of one share of a layer, on one device."""

    def __init__(self, config: ModelProbeConfig, parts: int) -> None:
        order = self._order = config.order
        self._parts = parts
        self._device = torch.device(config.device)
        self._kind = KINDS[order.dtype]
        self._extent = _extent(config, parts)
        self._num_layers = self._extent.layers[1] - self._extent.layers[0]
        needed = shard_weight_bytes(order.model, self._extent, order.dtype, order.quantisation)
        largest = 4 * order.model.hidden_size * max(order.model.vocab_size, 3 * order.model.intermediate_size)
        check_room(config.host, config.device, self._device, needed + largest, hint="free memory there")
        weights = random_weights(
            order.model, self._extent, kind=self._kind, device=self._device, quantisation=order.quantisation
        )
        self._context = max(DECODE_CONTEXT, order.prefill_chunk)
        self._decoder = Decoder(
            order.model,
            self._extent,
            weights,
            context=self._context,
            kind=self._kind,
            device=self._device,
            on_layer=lambda: None,
        )

    def measure(self) -> ModelProbe:
        order = self._order
        chunks = sorted({min(rows, order.prefill_chunk) for rows in (*PROMPT_ROWS, order.prefill_chunk)})
        decodes = [(self._decode(sequences), self._draw(sequences)) for sequences in DECODING_SEQUENCES]
        beside = DECODING_SEQUENCES[-1] - 1
        prompts = [(self._chunk(rows), *decodes[0]) for rows in chunks]
        # Beside a chunk of a usual size: of the longest one, a hundredth is more than a token costs.
        chunk = min(PROMPT_ROWS[-1], order.prefill_chunk)
        mixed = (self._mixed(chunk, beside), *decodes[-1])
        *timed, mixed_s = self._seconds_of([*decodes, *prompts, mixed])
        decode_s, prompt_s = timed[: len(decodes)], timed[len(decodes) :]
        steps = [
            StepProbe(rows=sequences, sequences=sequences, context=DECODE_CONTEXT, seconds=layer_s)
            for sequences, (layer_s, _) in zip(DECODING_SEQUENCES, decode_s, strict=True)
        ]
        steps += [
            StepProbe(rows=rows, sequences=1, context=rows, seconds=layer_s)
            for rows, (layer_s, _) in zip(chunks, prompt_s, strict=True)
        ]
        steps.append(
            StepProbe(rows=chunk + beside, sequences=beside + 1, context=DECODE_CONTEXT, seconds=mixed_s[0])
        )
        return ModelProbe(
            widths=order.model.widths,
            dtype=order.dtype,
            quantisation=order.quantisation,
            parts=self._parts,
            num_layers=self._num_layers,
            steps=tuple(steps),
            heads=tuple(
                HeadProbe(rows=rows, seconds=head_s)
                for rows, (_, head_s) in zip(DECODING_SEQUENCES, decode_s, strict=True)
            ),
            rests=tuple(self._rests(*decodes[0])) if self._parts == 1 else (),
            measured_at_s=time.time(),
        )

    def _seconds_of(self, points: Sequence[tuple[Act, ...]]) -> list[tuple[float, float]]:
        """Of each point's layers, for one of them, and of the last of its acts, a draw.

        Acts of a point take turns, as steps and draws do when a rank serves.
        """
        span_s = self._order.sizes.span_s
        rounds = [[seconds_in_turn(acts, self._device, span_s) for acts in points]]
        for _ in range(ROUNDS - 1):
            rounds.append(
                [
                    # One that takes seconds has lasted through more than a moment already.
                    seconds if sum(seconds) >= LONG_ROUND_S else seconds_in_turn(acts, self._device, span_s)
                    for acts, seconds in zip(points, rounds[0], strict=True)
                ]
            )
        medians = [
            [statistics.median(times) for times in zip(*each, strict=True)] for each in zip(*rounds, strict=True)
        ]
        return [(seconds[0] / self._num_layers, seconds[-1]) for seconds in medians]

    def _rests(self, layers: Act, draw: Act) -> Sequence[RestProbe]:
        """A GPU's launches wait for nothing that a rest takes away, so nothing is measured there."""
        if self._device.type != "cpu":
            return []
        return [
            RestProbe(idle_s=idle_s, seconds=_longer_after(layers, draw, idle_s) / self._num_layers)
            for idle_s in IDLE_S
        ]

    def _decode(self, sequences: int) -> Act:
        return self._step(decoding(sequences, context=DECODE_CONTEXT))

    def _chunk(self, rows: int) -> Act:
        return self._step([prompt(0, rows, first_block=0)])

    def _mixed(self, rows: int, beside: int) -> Act:
        """A prompt's chunk and the tokens of other sequences."""
        used = beside * blocks_of(DECODE_CONTEXT)
        return self._step([*decoding(beside, context=DECODE_CONTEXT), prompt(beside, rows, first_block=used)])

    def _step(self, slices: list[SequenceSlice]) -> Act:
        return step_through(
            self._decoder, self._order.model, self._extent, slices, device=self._device, kind=self._kind
        )

    def _draw(self, rows: int) -> Act:
        sampler = Sampler(rows)
        pieces = [
            SequenceSlice(slot=slot, start=0, tokens=[0], samples=True, params=SamplingParams())
            for slot in range(rows)
        ]
        hidden_RD = torch.randn((rows, self._order.model.hidden_size), device=self._device).to(self._kind)

        def act(_number: int) -> object:
            sampler.extend(pieces)
            return sampler.sample(pieces, self._decoder.logits(hidden_RD))

        return act


def _extent(config: ModelProbeConfig, parts: int) -> ShardExtent:
    """Of the model's last layers, with its head."""
    order, spec = config.order, config.order.model
    units = [spec.num_kv_heads // parts] * parts
    share = cut_shares(spec, units)[0]
    one = extent_of(spec, (spec.num_layers - 1, spec.num_layers), share)
    head_bytes = spec.hidden_size * (share.vocab[1] - share.vocab[0]) * DTYPE_BYTES[order.dtype]
    layer_bytes = max(1, shard_weight_bytes(spec, one, order.dtype, order.quantisation) - head_bytes)
    wanted = max(MIN_LAYERS, -(-order.sizes.weights_bytes // layer_bytes))
    return extent_of(spec, (max(0, spec.num_layers - wanted), spec.num_layers), share)


def _longer_after(layers: Act, draw: Act, idle_s: float) -> float:
    """Seconds that a step takes longer through the layers after doing nothing for so long than at once."""
    longer = []
    for number in range(REST_REPEATS):
        time.sleep(idle_s)
        begun = time.perf_counter()
        layers(number)
        rested_s = time.perf_counter() - begun
        draw(number)
        begun = time.perf_counter()
        layers(number)
        longer.append(rested_s - (time.perf_counter() - begun))
        draw(number)
    return max(0.0, statistics.median(longer))
