"""A server under load: which API it speaks, which model it is asked for, and one streamed request to it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from agent.errors import FleetError
from odctl.bench.prompts import WordCost, calibration_prompt, word_cost

if TYPE_CHECKING:
    import httpx

Api = Literal["openai", "ollama"]

CONNECT_TIMEOUT_S = 10.0
LOOK_TIMEOUT_S = 15.0
MAX_DETAIL = 300
MAX_LINE_BYTES = 16 * 1024 * 1024


class RequestFailed(Exception):
    """A request without its full answer: `kind` is what errors are counted by."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail[:MAX_DETAIL]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`piece_s` are the monotonic times at which pieces came; counts are the server's own where it tells them."""

    piece_s: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    text: str


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of an event of OpenAI's completions."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a line of Ollama's generate."""

    response: str = ""
    done: bool = False
    prompt_eval_count: int = 0
    eval_count: int = 0
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_line = msgspec.json.Decoder(_Line).decode


class Server:
    """One model behind one address. The HTTP client belongs to the caller."""

    def __init__(self, client: httpx.AsyncClient, *, label: str, api: Api, model: str, timeout_s: float) -> None:
        import httpx

        self.label = label
        self.api: Api = api
        self.model = model
        self._client = client
        self._timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)

    async def ask(self, prompt: str | list[int], *, num_tokens: int) -> Answer:
        """A greedy answer of `num_tokens`, past the model's end where the server can. Raises RequestFailed."""
        import httpx

        try:
            if self.api == "openai":
                return await self._ask_openai(prompt, num_tokens)
            return await self._ask_ollama(prompt, num_tokens)
        except httpx.TimeoutException as error:
            raise RequestFailed("timeout", repr(error)) from error
        except httpx.ConnectError as error:
            raise RequestFailed("no connection", str(error)) from error
        except httpx.HTTPError as error:
            raise RequestFailed("connection lost", str(error) or repr(error)) from error
        except FleetError as error:
            raise RequestFailed("no connection", str(error)) from error
        except msgspec.DecodeError as error:
            raise RequestFailed("not understood", str(error)) from error

    async def learn_word_cost(self) -> WordCost:
        """Two short requests tell how the server counts words. Raises FleetError E808 when they fail."""
        counts = []
        for rounds in (1, 2):
            try:
                answer = await self.ask(calibration_prompt(rounds), num_tokens=1)
            except RequestFailed as error:
                raise FleetError("E808", f"{self.label} does not answer: {error}") from error
            counts.append(answer.prompt_tokens)
        if not counts[0]:
            raise FleetError("E808", f"{self.label} does not count its tokens", hint="try the other --api")
        return word_cost(once=counts[0], twice=counts[1])

    async def _ask_openai(self, prompt: str | list[int], num_tokens: int) -> Answer:
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        pieces: list[str] = []
        times: list[float] = []
        usage = _Usage()
        is_whole = False
        async for line in self._lines("/v1/completions", body):
            if line.startswith(b"error:"):
                raise RequestFailed("error in the stream", line.decode(errors="replace"))
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                is_whole = True
                continue
            chunk = _decode_chunk(data)
            if chunk.error is not None:
                raise RequestFailed("error in the stream", _message(chunk.error))
            if chunk.usage is not None:
                usage = chunk.usage
            for choice in chunk.choices:
                if choice.text:
                    times.append(time.perf_counter())
                    pieces.append(choice.text)
                is_whole = is_whole or choice.finish_reason is not None
        return _answer(times, pieces, usage.prompt_tokens, usage.completion_tokens, is_whole=is_whole)

    async def _ask_ollama(self, prompt: str | list[int], num_tokens: int) -> Answer:
        assert isinstance(prompt, str), "Ollama's API takes no token ids"
        options = {"num_predict": num_tokens, "temperature": 0, "repeat_penalty": 1.0, "ignore_eos": True}
        body = {"model": self.model, "prompt": prompt, "raw": True, "stream": True, "options": options}
        pieces: list[str] = []
        times: list[float] = []
        last: _Line | None = None
        async for line in self._lines("/api/generate", body):
            part = _decode_line(line)
            if part.error is not None:
                raise RequestFailed("error in the stream", _message(part.error))
            if part.response:
                times.append(time.perf_counter())
                pieces.append(part.response)
            if part.done:
                last = part
        counts = (last.prompt_eval_count, last.eval_count) if last else (0, 0)
        return _answer(times, pieces, *counts, is_whole=last is not None)

    async def _lines(self, route: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """Lines of a streamed answer as they come, empty ones left out."""
        content = msgspec.json.encode(body)
        headers = {"content-type": "application/json"}
        async with self._client.stream(
            "POST", route, content=content, headers=headers, timeout=self._timeout
        ) as response:
            if response.is_error:
                text = (await response.aread()).decode(errors="replace")
                raise RequestFailed(f"http {response.status_code}", _message_of(text))
            rest = b""
            async for part in response.aiter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise RequestFailed("not understood", f"a line of more than {MAX_LINE_BYTES} bytes")
                for line in lines:
                    if line.strip():
                        yield line
            if rest.strip():
                yield rest


async def find_server(
    client: httpx.AsyncClient, *, label: str, api: Api | None, model: str, timeout_s: float
) -> Server:
    """Look which API an address speaks and which models it has. Raises E808, E118 for a choice it leaves open."""
    import httpx

    names: list[str] | None = None
    problem = "it speaks neither OpenAI's nor Ollama's API"
    for each in (api,) if api is not None else ("openai", "ollama"):
        try:
            names = await _models(client, each)
            api = each
            break
        except (httpx.HTTPError, FleetError) as error:
            problem = str(error) or repr(error)
        except (msgspec.DecodeError, KeyError, TypeError):
            problem = f"it does not speak {each}'s API"
    if names is None or api is None:
        raise FleetError("E808", f"{label}: {problem}", hint="give the address that its HTTP API listens on")
    if not model:
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise FleetError("E118", f"{label} has {len(names)} models", hint=f"--model: {listed}")
        model = names[0]
    return Server(client, label=label, api=api, model=model, timeout_s=timeout_s)


async def _models(client: httpx.AsyncClient, api: Api) -> list[str]:
    route = "/v1/models" if api == "openai" else "/api/tags"
    response = await client.get(route, timeout=LOOK_TIMEOUT_S)
    response.raise_for_status()
    answer = msgspec.json.decode(response.content)
    if api == "openai":
        return [str(each["id"]) for each in answer["data"]]
    return [str(each["name"]) for each in answer["models"]]


def _answer(
    times: list[float], pieces: list[str], prompt_tokens: int, output_tokens: int, *, is_whole: bool
) -> Answer:
    if not is_whole:
        raise RequestFailed("cut off", f"the stream ended after {len(pieces)} pieces without saying so")
    if not times:
        if not output_tokens:
            raise RequestFailed("empty", "the answer has neither text nor tokens")
        # Bytes that never became a character: they came with the end at the latest.
        times = [time.perf_counter()]
    return Answer(
        piece_s=tuple(times),
        prompt_tokens=prompt_tokens,
        # A server that does not count sends a token a piece, as far as can be seen from here.
        output_tokens=output_tokens or len(times),
        text="".join(pieces),
    )


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _message_of(body: str) -> str:
    try:
        return _message(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.strip()
