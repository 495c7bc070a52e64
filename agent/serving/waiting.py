"""Requests that wait for a slot: important ones first, and among equals a fair share for every client. No I/O.

Fairness is that of virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", 2024): every
computed token is charged to its client, and the client that was charged least is served next. A client that comes
back is lifted to those who wait already, so that nobody saves up.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from agent.serving.request import Request

KEPT_CLIENTS = 4096
"""Clients whose counters are kept while they have nothing waiting."""
PROMPT_TOKEN_CHARGE, DRAWN_TOKEN_CHARGE = 1.0, 2.0
"""As in the paper: a token that is drawn takes a step of its own."""


class _Class:
    """Requests of one priority. `returned` ran already and lost their place: they come before everyone."""

    def __init__(self) -> None:
        self.returned: deque[Request] = deque()
        self.by_client: dict[str, deque[Request]] = {}

    def __iter__(self) -> Iterator[Request]:
        yield from self.returned
        for requests in self.by_client.values():
            yield from requests

    @property
    def is_empty(self) -> bool:
        return not self.returned and not self.by_client


class WaitingRequests:
    """Deterministic: ties go to the client that has waited longest."""

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}
        self._charged: OrderedDict[str, float] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Request]:
        for priority in sorted(self._classes):
            yield from self._classes[priority]

    def push(self, request: Request) -> None:
        group = self._classes.setdefault(request.priority, _Class())
        if request.client not in group.by_client:
            others = [
                self._charged.get(client, 0.0) for each in self._classes.values() for client in each.by_client
            ]
            self._set_charge(request.client, max(self._charged.get(request.client, 0.0), min(others, default=0.0)))
        group.by_client.setdefault(request.client, deque()).append(request)
        self._size += 1

    def push_front(self, request: Request) -> None:
        """It ran and lost its place."""
        self._classes.setdefault(request.priority, _Class()).returned.appendleft(request)
        self._size += 1

    def peek(self) -> Request | None:
        """The one that is next."""
        if not self._size:
            return None
        group = self._classes[min(self._classes)]
        return group.returned[0] if group.returned else group.by_client[self._next_client(group)][0]

    def pop(self) -> Request:
        request = self.peek()
        assert request is not None, "nobody waits"
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        is_there = self.discard(request)
        assert is_there, "it does not wait"

    def discard(self, request: Request) -> bool:
        """Take one out wherever it stands. False when it does not wait."""
        group = self._classes.get(request.priority)
        if group is None:
            return False
        if request in group.returned:
            group.returned.remove(request)
        else:
            requests = group.by_client.get(request.client)
            if requests is None or request not in requests:
                return False
            requests.remove(request)
            if not requests:
                del group.by_client[request.client]
        if group.is_empty:
            del self._classes[request.priority]
        self._size -= 1
        return True

    def charge(self, client: str, amount: float) -> None:
        self._set_charge(client, self._charged.get(client, 0.0) + amount)

    def _next_client(self, group: _Class) -> str:
        return min(group.by_client, key=lambda client: self._charged.get(client, 0.0))

    def _set_charge(self, client: str, amount: float) -> None:
        self._charged[client] = amount
        self._charged.move_to_end(client)
        while len(self._charged) > KEPT_CLIENTS:
            self._charged.popitem(last=False)
