"""Why a client's request is not served, free of any protocol; each protocol renders it in its own form."""

from __future__ import annotations

from agent.errors import ErrorDetail
from agent.serving.request import Failed

BUSY_RETRY_S = 1
CANCELLED = "E820"
"""An operator cancelled the request."""


class Refusal(Exception):
    """Raised anywhere below an endpoint, rendered by the protocol's error handler.

    `param` names the field at fault, `code` is OpenAI's machine-readable reason where there is one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        may_retry: bool = True,
    ) -> None:
        """`may_retry` False keeps OpenAI's clients from asking again by themselves."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.may_retry = may_retry

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        headers |= {} if self.may_retry else {"x-should-retry": "false"}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    @classmethod
    def of_failure(cls, failed: Failed) -> Refusal:
        """A request that failed before its first output: 503 where a retry may help; cancelled by an operator,
        it must not come back by itself.
        """
        if failed.error.code == CANCELLED:
            return cls(500, sentence_of(failed.error), code="request_cancelled", may_retry=False)
        status = 500 if failed.retry_after_s is None else 503
        return cls(
            status, sentence_of(failed.error), code="service_unavailable", retry_after_s=failed.retry_after_s
        )


def bad_field(name: str, value: object, allowed: str) -> Refusal:
    """400 that names the field, what it was and what it may be."""
    return Refusal(400, f"`{name}` must be {allowed}, got {_short(value)}", param=name, code="invalid_value")


def not_supported(name: str, why: str) -> Refusal:
    return Refusal(400, f"`{name}` is not supported: {why}", param=name, code="unsupported_parameter")


def sentence_of(error: ErrorDetail) -> str:
    """What a client may read of our trouble: the message and where, no hint for operators."""
    where = f" (host {error.host})" if error.host else ""
    return f"{error.message}{where} [{error.code}]"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
