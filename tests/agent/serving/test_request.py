"""What a request tells its client, token by token."""

from __future__ import annotations

from agent.errors import ErrorDetail
from agent.serving.request import Failed, Finished, GrammarBroken, Request, RequestEvent, TextEmitted
from agent.serving.tokens import ModelTokens
from agent.wire.rank import SampledToken, SamplingParams
from tests.agent.serving.tokenizer import EOS, small_tokenizer

TOKENS = ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS}))


class OneWord:
    """A grammar of one text: its tokens in order, then the end."""

    def __init__(self, text: str) -> None:
        self._left = [*TOKENS.encode(text, adds_special=False)]

    @property
    def is_complete(self) -> bool:
        return not self._left

    def mask(self) -> bytes:
        return bytes(64)

    def accept(self, token: int) -> None:
        if self._left[:1] != [token]:
            raise GrammarBroken(f"token {token} cannot follow")
        self._left.pop(0)


def start(events: list[RequestEvent], stop: tuple[str, ...] = (), grammar: OneWord | None = None) -> Request:
    request = Request(
        prompt=(5,),
        params=SamplingParams(),
        max_tokens=100,
        arrived_s=1.0,
        text=TOKENS.stream((5,), stop=stop),
        grammar=grammar,
        on_event=events.append,
    )
    request.state = "running"
    return request


def feed(request: Request, text: str) -> bool:
    for index, token in enumerate(TOKENS.encode(text, adds_special=False)):
        sampled = SampledToken(slot=0, position=index, token=token, logprobs=[(token, -0.5)])
        if request.deliver(sampled, None, 2.0 + index):
            return True
    return False


def text_of(events: list[RequestEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextEmitted))


def test_every_token_is_reported_once_with_the_text_it_became() -> None:
    events: list[RequestEvent] = []
    request = start(events)
    feed(request, "a🦙b")
    request.deliver(SampledToken(slot=0, position=9, token=EOS), "stop", 9.0)
    assert text_of(events) == "a🦙b"
    drawn = [each.token for event in events if isinstance(event, TextEmitted) for each in event.tokens]
    assert drawn == list(TOKENS.encode("a🦙b", adds_special=False))
    assert events[-1] == Finished(reason="stop")
    assert (request.first_token_s, request.last_token_s) == (2.0, 9.0)


def test_a_stop_string_ends_it_and_is_not_shown() -> None:
    events: list[RequestEvent] = []
    request = start(events, stop=("<end>",))
    assert feed(request, "done<end> more")
    assert text_of(events) == "done"
    assert events[-1] == Finished(reason="stop")


def test_held_text_comes_out_at_the_length_limit() -> None:
    events: list[RequestEvent] = []
    request = start(events, stop=("ab-never",))
    [token] = TOKENS.encode("a", adds_special=False)
    request.deliver(SampledToken(slot=0, position=1, token=token), "length", 2.0)
    assert text_of(events) == "a"
    assert events[-1] == Finished(reason="length")


def test_a_failure_is_told_once() -> None:
    events: list[RequestEvent] = []
    request = start(events)
    error = ErrorDetail(code="E810", message="lost")
    request.fail(error, retry_after_s=2)
    request.fail(error)
    assert events == [Failed(error=error, retry_after_s=2)]


def test_a_complete_grammar_ends_it_without_waiting_for_an_end_token() -> None:
    events: list[RequestEvent] = []
    request = start(events, stop=("}never",), grammar=OneWord('{"a": 1}'))
    assert feed(request, '{"a": 1}')
    assert text_of(events) == '{"a": 1}'
    assert events[-1] == Finished(reason="stop")


def test_a_token_against_the_grammar_is_a_failure() -> None:
    events: list[RequestEvent] = []
    request = start(events, grammar=OneWord("yes"))
    assert feed(request, "no")
    assert isinstance(events[-1], Failed)
    assert events[-1].error.code == "E818"
