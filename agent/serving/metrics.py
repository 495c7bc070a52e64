"""What serving measured: time to first token, time per token, rates and counts. Times are passed in."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection

import msgspec

from agent.serving.request import Request

WINDOW_S = 10.0
"""Rates are over this long."""
KEPT_REQUESTS = 512
"""Percentiles are over this many of the latest requests."""


class ServingSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start; percentiles over the latest requests, 0 before there is one."""

    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int
    generated_tokens: int
    tokens_per_s: float
    ttft_s_p50: float
    ttft_s_p95: float
    time_per_token_s_p50: float
    time_per_token_s_p95: float
    busy_s: float = 0.0
    """Seconds in which a request waited or ran."""
    ttft_s_sum: float = 0.0
    """Over all requests that had a first token, `num_first_tokens` of them."""
    num_first_tokens: int = 0
    decode_s_sum: float = 0.0
    """Seconds between first and last tokens of the requests that ended; `decoded_tokens` came in them."""
    decoded_tokens: int = 0
    tokens_by_streams: dict[int, int] = {}
    """Generated tokens by how many requests ran in their replica when they were drawn."""


class ServingMetrics:
    """Counts of one backend. Used on one event loop."""

    def __init__(self) -> None:
        self._finished = 0
        self._failed = 0
        self._cancelled = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._token_times: deque[float] = deque()
        self._ttft_s: deque[float] = deque(maxlen=KEPT_REQUESTS)
        self._time_per_token_s: deque[float] = deque(maxlen=KEPT_REQUESTS)
        self._busy_s = 0.0
        self._busy_until_s = -math.inf
        self._ttft_s_sum = 0.0
        self._num_first_tokens = 0
        self._decode_s_sum = 0.0
        self._decoded_tokens = 0
        self._tokens_by_streams: Counter[int] = Counter()

    def count_token(self, request: Request, now_s: float, *, streams: int) -> None:
        """One drawn token, of so many requests that ran; with a request's first one its prompt is computed."""
        if request.is_probe:
            return
        self._generated_tokens += 1
        self._tokens_by_streams[streams] += 1
        if len(request.generated) == 1:
            self._prompt_tokens += len(request.prompt)
            self._ttft_s.append(now_s - request.arrived_s)
            self._ttft_s_sum += now_s - request.arrived_s
            self._num_first_tokens += 1
        # From the last token of anybody, or from this request's arrival where nobody was there before it.
        self._busy_s += now_s - min(now_s, max(request.arrived_s, self._busy_until_s))
        self._busy_until_s = now_s
        self._token_times.append(now_s)
        self._forget_before(now_s - WINDOW_S)

    def count_embedding(self, request: Request) -> None:
        """One embedded prompt."""
        if not request.is_probe:
            self._prompt_tokens += len(request.prompt)

    def count_end(self, request: Request) -> None:
        """A request that ended, however it did."""
        if request.is_probe:
            return
        match request.state:
            case "finished":
                self._finished += 1
            case "cancelled":
                self._cancelled += 1
            case _:
                self._failed += 1
        seconds = time_per_token_s(request)
        if seconds is not None:
            self._time_per_token_s.append(seconds)
            self._decoded_tokens += len(request.generated) - 1
            self._decode_s_sum += seconds * (len(request.generated) - 1)

    def snapshot(self, now_s: float) -> ServingSnapshot:
        self._forget_before(now_s - WINDOW_S)
        return ServingSnapshot(
            finished=self._finished,
            failed=self._failed,
            cancelled=self._cancelled,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            tokens_per_s=len(self._token_times) / WINDOW_S,
            ttft_s_p50=percentile(self._ttft_s, 50),
            ttft_s_p95=percentile(self._ttft_s, 95),
            time_per_token_s_p50=percentile(self._time_per_token_s, 50),
            time_per_token_s_p95=percentile(self._time_per_token_s, 95),
            busy_s=self._busy_s,
            ttft_s_sum=self._ttft_s_sum,
            num_first_tokens=self._num_first_tokens,
            decode_s_sum=self._decode_s_sum,
            decoded_tokens=self._decoded_tokens,
            tokens_by_streams=dict(self._tokens_by_streams),
        )

    def _forget_before(self, time_s: float) -> None:
        while self._token_times and self._token_times[0] <= time_s:
            self._token_times.popleft()


def time_per_token_s(request: Request) -> float | None:
    """Seconds per token after the first (vLLM's TPOT); None for requests of fewer than two tokens."""
    if len(request.generated) < 2 or request.first_token_s is None or request.last_token_s is None:
        return None
    return (request.last_token_s - request.first_token_s) / (len(request.generated) - 1)


def percentile(values: Collection[float], percent: float) -> float:
    """Nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0.0
    rank = max(1, math.ceil(percent / 100 * len(values)))
    return sorted(values)[rank - 1]
