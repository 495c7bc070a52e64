"""One deployment at a gateway: its generations, the one that serves, and who waits for the next one."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from agent.api.backend import RETRY_AFTER_S, Backend
from agent.api.refusal import BUSY_RETRY_S, Refusal
from agent.errors import ErrorDetail, FleetError
from agent.serving.chat import ChatTemplate
from agent.serving.grammar import GrammarCompiler
from agent.serving.request import Request
from agent.serving.scheduler import QueueFull, longest_sequence
from agent.serving.tokens import ModelTokens
from agent.wire.gateway import AttachBackend

log = logging.getLogger(__name__)


class Face(msgspec.Struct, frozen=True, kw_only=True):
    """What clients see of a deployment: it outlives the backend that it came from, for those who wait."""

    attach: AttachBackend
    tokens: ModelTokens
    chat: ChatTemplate
    grammars: GrammarCompiler
    since_s: float
    """Wall clock."""

    @property
    def name(self) -> str:
        return self.attach.deployment


class Deployment:
    """Requests go to the active backend; while that one is broken they wait, at most `wait_s`."""

    def __init__(self, name: str, *, wait_s: float) -> None:
        self.name = name
        self.backends: dict[int, Backend] = {}
        self.active: Backend | None = None
        self.face: Face | None = None
        self._wait_s = wait_s
        self._waiting: dict[Request, asyncio.TimerHandle] = {}
        self._known_until_s = 0.0

    @property
    def is_known(self) -> bool:
        """Clients may ask for it: it serves, or it broke and is given time to come back."""
        return self.face is not None and (self.active is not None or time.monotonic() < self._known_until_s)

    @property
    def is_empty(self) -> bool:
        return not self.backends and not self._waiting and not self.is_known

    def submit(self, request: Request) -> None:
        """To the active backend, or to those who wait for one. Raises Refusal 400 or 503."""
        assert self.face is not None, "clients find only what was active once"
        context = longest_sequence(self.face.attach.serving)
        if len(request.prompt) >= context:
            raise Refusal(
                400,
                f"the prompt has {len(request.prompt)} tokens, but {self.name} is served with a context of "
                f"{context}, of which at least one is for the answer",
                code="context_length_exceeded",
            )
        if self.active is not None and self.active.is_usable:
            try:
                self.active.submit(request)
            except QueueFull:
                queue = self.active.attach.serving.queue
                raise Refusal(
                    503,
                    f"{self.name} is busy: {queue} requests wait already",
                    code="server_busy",
                    retry_after_s=BUSY_RETRY_S,
                ) from None
            return
        if len(self._waiting) >= self.face.attach.serving.queue:
            raise Refusal(
                503, f"{self.name} is being repaired", code="service_unavailable", retry_after_s=RETRY_AFTER_S
            )
        self._wait(request)

    def cancel(self, request: Request) -> None:
        """The client is gone. Nothing happens when the request is over."""
        timer = self._waiting.pop(request, None)
        if timer is not None:
            timer.cancel()
            request.state = "cancelled"
        for backend in self.backends.values():
            backend.cancel(request)

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Those that wait for a generation, oldest first."""
        return tuple(sorted(self._waiting, key=lambda request: request.arrived_s))

    def add(self, backend: Backend) -> None:
        assert backend.generation not in self.backends, f"generation {backend.generation} twice"
        self.backends[backend.generation] = backend

    def activate(self, generation: int) -> None:
        """From now on requests go there. Raises FleetError for one that is older, broken or not attached."""
        backend = self.backends.get(generation)
        if backend is None:
            raise FleetError("E812", f"{self.name} generation {generation} is not attached")
        previous = self.active
        if previous is backend:
            return
        if previous is not None and previous.generation > generation:
            raise FleetError(
                "E410", f"{self.name} generation {generation} is older than the active {previous.generation}"
            )
        if backend.state == "broken":
            raise FleetError("E810", f"{self.name} generation {generation} is broken already")
        backend.take_over(previous)
        self.active = backend
        backend.state = "active"
        moved: list[Request] = []
        if previous is not None:
            if previous.state == "active":
                previous.state = "draining"
            if previous.attach.model.digest == backend.attach.model.digest:
                moved = previous.take_queued()
        is_same_model = self.face is None or self.face.attach.model.digest == backend.attach.model.digest
        self.face = Face(
            attach=backend.attach,
            tokens=backend.tokens,
            chat=backend.chat,
            grammars=(
                self.face.grammars
                if self.face is not None and is_same_model
                else GrammarCompiler(backend.tokens, vocab_size=backend.attach.model.vocab_size)
            ),
            since_s=backend.attached_at_s,
        )
        for request, timer in list(self._waiting.items()):
            timer.cancel()
            if is_same_model:
                moved.append(request)
            else:
                request.fail(_model_changed(self.name), retry_after_s=RETRY_AFTER_S)
        self._waiting.clear()
        for request in sorted(moved, key=lambda each: each.arrived_s):
            self._resubmit(request, backend)

    async def retire(self, generation: int, *, drain_s: float) -> None:
        """No new requests for it, wait for what it has, then detach. Gone already is well."""
        backend = self.backends.get(generation)
        if backend is None:
            return
        if self.active is backend:
            self.active = None
        if backend.state != "broken":
            backend.state = "draining"
        idle = asyncio.Event()
        backend.on_idle = idle.set
        if not backend.is_idle:
            try:
                async with asyncio.timeout(drain_s):
                    await idle.wait()
            except TimeoutError:
                log.warning(
                    "drain cut short",
                    extra={"deployment": self.name, "generation": generation, "drain_s": drain_s},
                )
        self.detach(generation)

    def detach(self, generation: int) -> None:
        """At once: what runs there ends with an error. Gone already is well."""
        backend = self.backends.pop(generation, None)
        if backend is None:
            return
        was_broken = backend.state == "broken"
        if self.active is backend:
            self.active = None
            if was_broken:
                self._known_until_s = time.monotonic() + self._wait_s
                self.shelter(backend)
        error = ErrorDetail(code="E813", message=f"generation {generation} of {self.name} was taken down")
        backend.close(error)

    def shelter(self, backend: Backend) -> None:
        """Let the queue of a lost backend wait for the next generation."""
        for request in backend.take_queued():
            self._wait(request)

    def close(self, error: ErrorDetail) -> None:
        """Everything ends with this error."""
        for request, timer in self._waiting.items():
            timer.cancel()
            request.fail(error, retry_after_s=RETRY_AFTER_S)
        self._waiting.clear()
        self.active = None
        for backend in self.backends.values():
            backend.close(error)
        self.backends.clear()

    def _wait(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        self._waiting[request] = loop.call_later(self._wait_s, self._give_up, request)

    def _give_up(self, request: Request) -> None:
        del self._waiting[request]
        error = ErrorDetail(
            code="E810", message=f"{self.name} lost a host and was not repaired within {self._wait_s:.0f} s"
        )
        request.fail(error, retry_after_s=RETRY_AFTER_S)

    def _resubmit(self, request: Request, backend: Backend) -> None:
        """A request that waited goes to the new generation, whose context may be smaller."""
        serving = backend.attach.serving
        context, num_tokens = longest_sequence(serving), len(request.prompt) + len(request.generated)
        if num_tokens >= context:
            request.fail(
                ErrorDetail(
                    code="E814",
                    message=f"{self.name} now has a context of {context} tokens, "
                    f"prompt and answer so far have {num_tokens}",
                )
            )
            return
        try:
            backend.submit(request)
        except QueueFull:
            error = ErrorDetail(code="E815", message=f"{self.name} is busy: {serving.queue} requests wait already")
            request.fail(error, retry_after_s=BUSY_RETRY_S)


def _model_changed(name: str) -> ErrorDetail:
    return ErrorDetail(code="E816", message=f"{name} serves another model now")
