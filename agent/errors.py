"""The one error that users see. No I/O.

Codes are grouped by the hundred, and the group decides the exit code of the command line (`odctl.result`):

| codes | trouble | exit |
|---|---|---|
| E1xx | bad file or usage | 3 |
| E2xx | a host cannot be reached or trusted | 4 |
| E3xx | some hosts failed, others did not | 5 |
| E4xx | the plan is stale | 6 |
| E5xx | another operator holds the lock | 7 |
| E6xx | it does not fit | 8 |
| E7xx | a model directory is wrong or missing | 1 |
| E8xx | an engine rank, link or gateway failed | 1 |
| E9xx | our own trouble | 1 |
"""

from __future__ import annotations

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """`FleetError` as a value: what crosses the wire and stands in `--json`."""

    code: str
    message: str
    hint: str = ""
    host: str = ""


class FleetError(Exception):
    """Trouble that its reader can do something about: what happened, where, and the way out.

    Programmer trouble is an `assert`, never this. Commands and the API render it; nobody else catches it
    to hide it.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", host: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.host = host

    def __str__(self) -> str:
        where = f"{self.host}: " if self.host else ""
        way_out = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{way_out}"

    @property
    def detail(self) -> ErrorDetail:
        return ErrorDetail(code=self.code, message=self.message, hint=self.hint, host=self.host)

    @classmethod
    def from_detail(cls, detail: ErrorDetail, *, host: str = "") -> FleetError:
        return cls(detail.code, detail.message, hint=detail.hint, host=detail.host or host)
