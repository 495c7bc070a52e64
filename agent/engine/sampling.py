"""Logits -> the next token. Runs on the leader of the last stage, on one row at a time.

Order of the filters, as in llama.cpp's default chain (and so in Ollama): penalties, top_k, top_p, min_p,
temperature, draw. Temperature 0 takes the most probable token after the penalties. The draw is a function of the
request's seed and the token's position alone (Philox, counter-based), so a replay on other shards goes on with the
same tokens.

Shapes: V vocabulary, C candidates left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent.errors import FleetError
from agent.wire.rank import SampledToken, SamplingParams, SequenceSlice

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
_WORD = (1 << 64) - 1


@dataclass
class SlotHistory:
    """All tokens of the sequence in a slot so far, and how it is sampled."""

    tokens: list[int] = field(default_factory=list)
    params: SamplingParams = field(default_factory=SamplingParams)

    def extend(self, piece: SequenceSlice) -> None:
        """Take a slice in; going back to an earlier position drops what stood there."""
        if piece.params is not None:
            self.params = piece.params
        elif piece.start == 0:
            self.params = SamplingParams()
        del self.tokens[piece.start :]
        self.tokens.extend(piece.tokens)


class Sampler:
    """One history per slot."""

    def __init__(self, batch: int) -> None:
        self._histories = [SlotHistory() for _ in range(batch)]

    def extend(self, slices: list[SequenceSlice]) -> None:
        for piece in slices:
            self._histories[piece.slot].extend(piece)

    def forget(self) -> None:
        self._histories = [SlotHistory() for _ in self._histories]

    def sample(self, slices: list[SequenceSlice], logits_RV: Tensor) -> list[SampledToken]:
        """One token per slice, `logits_RV` being their rows in order. Raises E803 when a logit is not finite."""
        finite_R = torch.isfinite(logits_RV).all(dim=-1).tolist()
        if not all(finite_R):
            slots = [piece.slot for piece, is_finite in zip(slices, finite_R, strict=True) if not is_finite]
            raise FleetError(
                "E803",
                f"logits are not finite in slots {slots}",
                hint="the weights are damaged, or overflow in this dtype; bfloat16 overflows less than float16",
            )
        most_likely_R = logits_RV.argmax(dim=-1).tolist()
        return [self._sample_row(piece, logits_RV[row], most_likely_R[row]) for row, piece in enumerate(slices)]

    def _sample_row(self, piece: SequenceSlice, logits_V: Tensor, most_likely: int) -> SampledToken:
        history = self._histories[piece.slot]
        params = history.params
        position = piece.start + len(piece.tokens)
        if params.temperature <= 0 and not _has_penalties(params) and params.logprobs < 0:
            return SampledToken(slot=piece.slot, position=position, token=most_likely)
        raw_V = logits_V.to(device="cpu", dtype=torch.float64).numpy()
        token = draw_token(raw_V, params, history.tokens, position)
        logprobs = report_logprobs(raw_V, token, params.logprobs) if params.logprobs >= 0 else []
        return SampledToken(slot=piece.slot, position=position, token=token, logprobs=logprobs)


def draw_token(logits_V: Floats, params: SamplingParams, history: list[int], position: int) -> int:
    """The token at `position` after the tokens of `history`."""
    logits_V = penalise(logits_V, params, history)
    if params.temperature <= 0:
        return int(logits_V.argmax())
    candidates_C, logits_C = keep_top_k(logits_V, params.top_k)
    kept = keep_top_p(logits_C, params.top_p)
    kept = min(kept, keep_min_p(logits_C, params.min_p))
    cumulative_C = softmax(logits_C[:kept] / params.temperature).cumsum()
    place = np.searchsorted(cumulative_C, uniform(params.seed, position) * cumulative_C[-1], side="right")
    return int(candidates_C[min(int(place), kept - 1)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on these two alone."""
    key = np.array([seed & _WORD, position & _WORD], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def penalise(logits_V: Floats, params: SamplingParams, history: list[int]) -> Floats:
    """Make tokens of the last `repeat_last_n` less likely.

    A positive logit is divided by `repeat_penalty`, a negative one multiplied; then `presence_penalty` is taken off
    once, `frequency_penalty` once per occurrence (llama.cpp's `llama_sampler_penalties_apply`).
    """
    if not _has_penalties(params) or not history:
        return logits_V
    last = history if params.repeat_last_n < 0 else history[-params.repeat_last_n :]
    tokens, counts = np.unique(np.asarray(last, dtype=np.int64), return_counts=True)
    penalised_V = logits_V.copy()
    seen = penalised_V[tokens]
    seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
    penalised_V[tokens] = seen - params.presence_penalty - params.frequency_penalty * counts
    return penalised_V


def keep_top_k(logits_V: Floats, top_k: int) -> tuple[Ids, Floats]:
    """(token ids, logits) of the `top_k` likeliest tokens (0: all), likeliest first, ties by token id."""
    size = logits_V.shape[0]
    if 0 < top_k < size:
        # everything that reaches the k-th value takes part in the sort, so that ties fall by id
        threshold = np.partition(logits_V, size - top_k)[size - top_k]
        candidates = np.flatnonzero(logits_V >= threshold)
    else:
        top_k = size
        candidates = np.arange(size)
    order = np.argsort(-logits_V[candidates], kind="stable")[:top_k]
    chosen_C = candidates[order]
    return chosen_C, logits_V[chosen_C]


def keep_top_p(logits_C: Floats, top_p: float) -> int:
    """How many candidates, likeliest first, it takes to reach a probability of `top_p`; one at least."""
    if top_p >= 1:
        return len(logits_C)
    reached_C = softmax(logits_C).cumsum() >= top_p
    return int(reached_C.argmax()) + 1 if reached_C.any() else len(logits_C)


def keep_min_p(logits_C: Floats, min_p: float) -> int:
    """How many candidates, likeliest first, have at least `min_p` of the likeliest one's probability."""
    if min_p <= 0:
        return len(logits_C)
    return max(1, int((logits_C >= logits_C[0] + np.log(min_p)).sum()))


def softmax(logits_C: Floats) -> Floats:
    weights = np.exp(logits_C - logits_C.max())
    result: Floats = weights / weights.sum()
    return result


def report_logprobs(logits_V: Floats, token: int, num_alternatives: int) -> list[tuple[int, float]]:
    """The chosen token, then the likeliest ones before any filter (the chosen one again when it is among them)."""
    highest = logits_V.max()
    normaliser = highest + np.log(np.exp(logits_V - highest).sum())
    ids = [token]
    if num_alternatives > 0:
        ids.extend(int(other) for other in keep_top_k(logits_V, num_alternatives)[0])
    return [(other, float(logits_V[other] - normaliser)) for other in ids]


def _has_penalties(params: SamplingParams) -> bool:
    is_any = params.repeat_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    return is_any and params.repeat_last_n != 0
