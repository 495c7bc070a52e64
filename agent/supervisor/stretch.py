"""One measuring of a gateway: what it did between two looks at its counts, for all who write of it. Pure."""

from __future__ import annotations

import msgspec

from agent.wire.gateway import BackendStatus

IDLE_S = 1.0
"""Requests that follow each other closer than this are measured together."""
MAX_STRETCH_S = 60.0
"""Under a load that never ends, a measurement is due this often."""


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """What came between two looks at one backend's counts, which only grow. A mean of nothing is None."""

    before: BackendStatus
    after: BackendStatus
    observed_s: float
    """Between the looks: `busy_s` of it a request was there."""

    @property
    def generation(self) -> int:
        return self.after.generation

    @property
    def is_at_rest(self) -> bool:
        """No request is there at its end, so that every one of its own is whole."""
        return _is_idle(self.after)

    @property
    def finished(self) -> int:
        return self.after.finished - self.before.finished

    @property
    def failed(self) -> int:
        return self.after.failed - self.before.failed

    @property
    def busy_s(self) -> float:
        return self.after.busy_s - self.before.busy_s

    @property
    def streams(self) -> float:
        """Requests that were there together, waiting ones included; 1 at least.

        By Little's law: seconds that requests were there, all added up, per second that any was.
        """
        return max(1.0, (self._ttft_s_sum + self._decode_s_sum) / self.busy_s) if self.busy_s > 0 else 1.0

    @property
    def prompt_tokens(self) -> float:
        """Of one request."""
        return (self.after.prompt_tokens - self.before.prompt_tokens) / max(1, self._answered)

    @property
    def answer_tokens(self) -> float:
        """Of one request."""
        return self._generated / max(1, self._answered)

    @property
    def ttft_s(self) -> float | None:
        return self._ttft_s_sum / self._answered if self._answered else None

    @property
    def time_per_token_s(self) -> float | None:
        """Seconds per token after the first (vLLM's TPOT)."""
        decoded = self.after.decoded_tokens - self.before.decoded_tokens
        return self._decode_s_sum / decoded if decoded else None

    @property
    def tokens_per_s(self) -> float | None:
        """Of all answers, per second in which a request was there."""
        return self._generated / self.busy_s if self.busy_s > 0 else None

    @property
    def tokens_by_streams(self) -> dict[int, int]:
        """Tokens by how many requests ran in their replica when they were drawn."""
        before, after = self.before.tokens_by_streams, self.after.tokens_by_streams
        grown = {streams: count - before.get(streams, 0) for streams, count in after.items()}
        return {streams: count for streams, count in sorted(grown.items()) if count > 0}

    @property
    def has_known_prompts(self) -> bool:
        """Beginnings of prompts were in the KV cache already, and not computed."""
        return self.after.prefix_hit_tokens > self.before.prefix_hit_tokens

    def joined(self, later: Stretch) -> Stretch | None:
        """Both as one; None where the later one does not begin where this one ends."""
        if later.before != self.after:
            return None
        return Stretch(before=self.before, after=later.after, observed_s=self.observed_s + later.observed_s)

    @property
    def _answered(self) -> int:
        return self.after.num_first_tokens - self.before.num_first_tokens

    @property
    def _generated(self) -> int:
        return self.after.generated_tokens - self.before.generated_tokens

    @property
    def _ttft_s_sum(self) -> float:
        return self.after.ttft_s_sum - self.before.ttft_s_sum

    @property
    def _decode_s_sum(self) -> float:
        return self.after.decode_s_sum - self.before.decode_s_sum


class GatewayMeter:
    """Cuts what one deployment's backend does into stretches that follow each other without a gap."""

    def __init__(self, *, is_new: bool, now_s: float) -> None:
        """`is_new`: the backend begins as the meter does, so that all its counts are this meter's to tell.

        Else it served before, and what it counted until the first look has been told, or is lost.
        """
        self._is_new = is_new
        self._before: BackendStatus | None = None
        self._began_s = now_s
        self._idle_since_s: float | None = None

    def look(self, status: BackendStatus | None, *, now_s: float) -> Stretch | None:
        """A stretch when requests have ended and none has been there for a while, or when one is overdue."""
        if status is None:
            return None
        before = self._before
        if before is None and not self._is_new:
            self._before, self._began_s = status, now_s
            return None
        if before is None or status.generation != before.generation or _restarted(status, before):
            before = self._before = _at_its_beginning(status)
            self._idle_since_s = None
        if not _is_idle(status):
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        has_rested = self._idle_since_s is not None and now_s - self._idle_since_s >= IDLE_S
        if not has_rested and now_s - self._began_s < MAX_STRETCH_S:
            return None
        stretch = Stretch(before=before, after=status, observed_s=now_s - self._began_s)
        if stretch.finished + stretch.failed == 0:
            return None
        self._before, self._began_s = status, now_s
        return stretch


def _at_its_beginning(status: BackendStatus) -> BackendStatus:
    """The same backend before its first request: counts that are not named here begin at their defaults."""
    return BackendStatus(
        deployment=status.deployment,
        generation=status.generation,
        plan_hash=status.plan_hash,
        state=status.state,
        slots=status.slots,
        running=0,
        queued=0,
        finished=0,
        failed=0,
        cancelled=0,
        prompt_tokens=0,
        generated_tokens=0,
        tokens_per_s=0.0,
        ttft_s_p50=0.0,
        ttft_s_p95=0.0,
        time_per_token_s_p50=0.0,
        time_per_token_s_p95=0.0,
    )


def _is_idle(status: BackendStatus) -> bool:
    return status.running == 0 and status.queued == 0


def _restarted(after: BackendStatus, before: BackendStatus) -> bool:
    """Counts of a gateway that began anew."""
    return after.generated_tokens < before.generated_tokens or after.finished < before.finished
