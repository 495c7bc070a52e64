"""Logits -> the next token, or the next ones where drafts are verified. Runs on the leader of the last stage.

Order of the filters: the slice's mask, then as in llama.cpp's default chain (and so in Ollama) penalties, top_k,
top_p, min_p, temperature, draw. Temperature 0 takes the most probable token after the penalties. The draw is a
function of the request's seed and the token's position alone (Philox, counter-based), so a replay on other shards
goes on with the same tokens.

Shapes: V vocabulary, C candidates left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.kv_cache import begins
from agent.errors import FleetError
from agent.wire.rank import SampledToken, SamplingParams, SequenceSlice

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
_WORD = (1 << 64) - 1
_LIKELIEST = (1024, 16384)
"""Candidates that are sorted first where no `top_k` says how many: most draws fall among them, and sorting a whole
vocabulary takes fifty times as long."""


@dataclass
class SlotHistory:
    """All tokens of the sequence in a slot so far, and how it is sampled."""

    tokens: list[int] = field(default_factory=list)
    params: SamplingParams = field(default_factory=SamplingParams)

    def extend(self, piece: SequenceSlice) -> None:
        """Take a slice in; going back to an earlier position drops what stood there."""
        if begins(piece):
            self.params = piece.params or SamplingParams()
            self.tokens[:] = piece.history
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

    def history(self, slot: int) -> SlotHistory:
        """Of the sequence in a slot: what `sample` has seen to be right, without the last token that it drew."""
        return self._histories[slot]

    def sample(self, slices: list[SequenceSlice], logits_RV: Tensor) -> list[SampledToken]:
        """What is drawn after each slice: one token, or as many as its drafts were right, and one.

        `logits_RV` are the rows of the slices in order, `drafts + 1` of each. Histories end behind the last token
        that was right. Raises E803 when a logit is not finite, E806 when a mask allows no token.
        """
        likeliest, is_finite = _survey(logits_RV)
        _check_finite(slices, is_finite)
        drawn: list[SampledToken] = []
        row = 0
        for piece in slices:
            end = row + piece.drafts + 1
            drawn.extend(self._sample_slice(piece, logits_RV[row:end], likeliest[row:end]))
            row = end
        return drawn

    def _sample_slice(self, piece: SequenceSlice, logits_NV: Tensor, likeliest: list[int]) -> list[SampledToken]:
        """A draw knows nothing of the guesses behind it, so these are the tokens that come without any."""
        history = self._histories[piece.slot]
        guesses = piece.tokens[len(piece.tokens) - piece.drafts :]
        first = piece.start + len(piece.tokens) - piece.drafts
        allowed_NV = _unpack_masks(piece, logits_NV.shape[1]) if piece.masks else None
        drawn: list[SampledToken] = []
        for index, guess in enumerate([*guesses, None]):
            allowed_V = None if allowed_NV is None else allowed_NV[index]
            position = first + index
            token, logprobs = _sample_row(
                history, position, logits_V=logits_NV[index], most_likely=likeliest[index], allowed_V=allowed_V
            )
            drawn.append(SampledToken(slot=piece.slot, position=position, token=token, logprobs=logprobs))
            if token != guess:
                break
        del history.tokens[first + len(drawn) - 1 :]
        return drawn


def draw_guesses(histories: Sequence[SlotHistory], logits_RV: Tensor, *, vocab_size: int) -> list[int | None]:
    """The token that each sequence would draw next by these logits; None where one of them is not finite.

    The logits are another model's, whose vocabulary may be padded to another size: only tokens below `vocab_size`
    are drawn, and those that it has no logits for are not.
    """
    known_RV = logits_RV[:, :vocab_size]
    likeliest, is_finite = _survey(known_RV)
    wide_RV = functional.pad(known_RV, (0, vocab_size - known_RV.shape[1]), value=float("-inf"))
    return [
        _sample_row(history, len(history.tokens), logits_V=wide_V, most_likely=token, allowed_V=None)[0]
        if is_right
        else None
        for history, wide_V, token, is_right in zip(histories, wide_RV, likeliest, is_finite, strict=True)
    ]


def _survey(logits_RV: Tensor) -> tuple[list[int], list[bool]]:
    """The likeliest token of each row (the first of equals), and whether all of the row's logits are finite.

    A logit that is no number counts as the highest. On a CPU numpy finds both several times sooner than torch.
    """
    likeliest_R: list[int]
    if logits_RV.device.type == "cpu":
        plain_RV = logits_RV.float().numpy()
        likeliest_R = plain_RV.argmax(axis=-1).tolist()
        highest, lowest = plain_RV[np.arange(len(likeliest_R)), likeliest_R], plain_RV.min(axis=-1)
        return likeliest_R, (np.isfinite(highest) & np.isfinite(lowest)).tolist()
    likeliest_R1 = logits_RV.argmax(dim=-1, keepdim=True)
    likeliest_R = likeliest_R1.flatten().tolist()
    extremes_R2 = torch.cat((logits_RV.gather(1, likeliest_R1), logits_RV.amin(dim=-1, keepdim=True)), dim=1)
    is_finite: list[bool] = extremes_R2.isfinite().all(dim=-1).tolist()
    return likeliest_R, is_finite


def _check_finite(slices: list[SequenceSlice], is_finite: list[bool]) -> None:
    slot_of_row = [piece.slot for piece in slices for _ in range(piece.drafts + 1)]
    slots = [slot for slot, is_right in zip(slot_of_row, is_finite, strict=True) if not is_right]
    if slots:
        raise FleetError(
            "E803",
            f"logits are not finite in slots {sorted(set(slots))}",
            hint="the weights are damaged, or overflow in this dtype; bfloat16 overflows less than float16",
        )


def _unpack_masks(piece: SequenceSlice, vocab_size: int) -> Booleans:
    """Which tokens each row of a slice may draw."""
    words = np.frombuffer(piece.masks, dtype=np.uint8).reshape(piece.drafts + 1, -1)
    allowed_NV = np.unpackbits(words, axis=1, count=vocab_size, bitorder="little").astype(np.bool_)
    if not allowed_NV.any(axis=1).all():
        raise FleetError("E806", f"a mask of slot {piece.slot} allows no token", hint="a fault of the gateway")
    return allowed_NV


def _sample_row(
    history: SlotHistory, position: int, *, logits_V: Tensor, most_likely: int, allowed_V: Booleans | None
) -> tuple[int, list[tuple[int, float]]]:
    """The token at `position`, and its log-probabilities where they are asked for."""
    params = history.params
    is_plain = params.temperature <= 0 and not _has_penalties(params) and params.logprobs < 0
    if is_plain and (allowed_V is None or allowed_V[most_likely]):
        return most_likely, []
    raw_V = logits_V.to(device="cpu", dtype=torch.float64).numpy()
    open_V = raw_V if allowed_V is None else np.where(allowed_V, raw_V, -np.inf)
    token = draw_token(open_V, params, history.tokens[:position], position)
    return token, report_logprobs(raw_V, token, params.logprobs) if params.logprobs >= 0 else []


def draw_token(logits_V: Floats, params: SamplingParams, history: list[int], position: int) -> int:
    """The token at `position` after the tokens of `history`. A logit of minus infinity is never drawn."""
    logits_V = penalise(logits_V, params, history)
    if params.temperature <= 0:
        return int(logits_V.argmax())
    chance = uniform(params.seed, position)
    if params.top_k <= 0 and params.top_p >= 1 and params.min_p <= 0:
        return _draw_unfiltered(logits_V, params.temperature, chance)
    for count in _LIKELIEST:
        if params.top_k <= 0 and len(logits_V) > count:
            token = _draw_likeliest(logits_V, params, chance, count)
            if token is not None:
                return token
    candidates_C, logits_C = keep_top_k(logits_V, params.top_k)
    kept = int(np.count_nonzero(np.isfinite(logits_C)))
    kept = min(kept, keep_top_p(logits_C, params.top_p), keep_min_p(logits_C, params.min_p))
    cumulative_C = softmax(logits_C[:kept] / params.temperature).cumsum()
    place = np.searchsorted(cumulative_C, chance * cumulative_C[-1], side="right")
    return int(candidates_C[min(int(place), kept - 1)])


def _draw_unfiltered(logits_V: Floats, temperature: float, chance: float) -> int:
    """The draw from all tokens, by id: without a filter nothing has to be sorted."""
    weights_V = np.exp((logits_V - logits_V.max()) / temperature)
    cumulative_V = weights_V.cumsum()
    place = int(np.searchsorted(cumulative_V, chance * cumulative_V[-1], side="right"))
    return place if place < len(weights_V) else int(np.flatnonzero(weights_V)[-1])


def _draw_likeliest(logits_V: Floats, params: SamplingParams, chance: float, count: int) -> int | None:
    """The draw from all tokens with `count` of them sorted: None where these do not hold the answer."""
    candidates_C, logits_C = keep_top_k(logits_V, count)
    highest = logits_C[0]
    kept = keep_min_p(logits_C, params.min_p)
    if params.top_p < 1:
        share = params.top_p * np.exp(logits_V - highest).sum()
        kept = min(kept, 1 + int(np.searchsorted(np.exp(logits_C - highest).cumsum(), share)))
    cumulative_C = np.exp((logits_C - highest) / params.temperature).cumsum()
    if kept < count:  # a filter has cut here: nothing behind takes part
        place = np.searchsorted(cumulative_C, chance * cumulative_C[kept - 1], side="right")
        return int(candidates_C[min(int(place), kept - 1)])
    if params.top_p < 1:
        return None
    whole = np.exp((logits_V - highest) / params.temperature).sum()
    place = np.searchsorted(cumulative_C, chance * whole, side="right")
    return int(candidates_C[place]) if place < count else None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on these two alone."""
    key = np.array([seed & _WORD, position & _WORD], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def penalise(logits_V: Floats, params: SamplingParams, history: list[int]) -> Floats:
    """Make tokens of the last `repeat_last_n` less likely.

    A positive logit is divided by `repeat_penalty`, a negative one multiplied; then `presence_penalty` is taken off
    once, `frequency_penalty` once per occurrence (llama.cpp's `llama_sampler_penalties_apply`), of those from
    position `penalties_from` on.
    """
    if not _has_penalties(params) or not history:
        return logits_V
    begin = 0 if params.repeat_last_n < 0 else max(0, len(history) - params.repeat_last_n)
    penalised_V = logits_V.copy()
    tokens = np.unique(np.asarray(history[begin:], dtype=np.int64))
    seen = penalised_V[tokens]
    penalised_V[tokens] = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
    counted = np.asarray(history[max(begin, params.penalties_from) :], dtype=np.int64)
    tokens, counts = np.unique(counted, return_counts=True)
    penalised_V[tokens] = penalised_V[tokens] - params.presence_penalty - params.frequency_penalty * counts
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
