"""A scripted HTTP server: streams with known times, and every way to fail that a client can meet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.agent.serving.tokenizer import small_tokenizer

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class ScriptedServer:
    """Answers `/v1/models` and `/v1/completions`; what a completion does is `behaviour` of its number."""

    def __init__(self, behaviour: str = "answer") -> None:
        self.behaviour: Callable[[int], str] = lambda _number: behaviour
        self.piece_s = 0.0
        self.num_asked = 0
        self.under_way = 0
        self.most_under_way = 0
        self.prompts: list[str] = []
        self.stalled = asyncio.Semaphore(0)
        """Released by each request that stalls."""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its address."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/v1/models" in head:
                body = json.dumps({"data": [{"id": "scripted"}]}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
                )
            else:
                length = next(
                    int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-len" in line
                )
                await self._complete(writer, json.loads(await reader.readexactly(length)))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client left first
        finally:
            writer.close()

    async def _complete(self, writer: asyncio.StreamWriter, asked: dict[str, object]) -> None:
        prompt, num_tokens = str(asked["prompt"]), int(str(asked["max_tokens"]))
        is_calibration = num_tokens == 1
        number = self.num_asked
        if not is_calibration:
            self.num_asked += 1
            self.prompts.append(prompt)
        behaviour = "answer" if is_calibration else self.behaviour(number)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self._behave(writer, behaviour, num_tokens, len(small_tokenizer().encode(prompt).ids))
        finally:
            self.under_way -= 1

    async def _behave(self, writer: asyncio.StreamWriter, behaviour: str, num_tokens: int, num_prompt: int) -> None:
        if behaviour == "refuse":
            body = json.dumps({"error": {"message": "no room"}}).encode()
            writer.write(b"HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            return
        if behaviour == "hang up":
            return
        writer.write(STREAM)
        for index in range(num_tokens):
            if behaviour == "stall" and index == 1:
                await writer.drain()
                self.stalled.release()
                await asyncio.sleep(30)
            if behaviour == "break" and index == 2:
                self._event(writer, {"error": {"message": "a rank is lost"}})
                return
            if behaviour == "cut off" and index == 2:
                return
            if behaviour == "babble" and index == 2:
                writer.write(b"data: {not json\n\n")
                return
            await asyncio.sleep(self.piece_s)
            self._event(writer, {"choices": [{"text": "x", "finish_reason": None}]})
            await writer.drain()
        self._event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": num_prompt, "completion_tokens": num_tokens}
        self._event(writer, {"choices": [], "usage": usage})
        writer.write(b"data: [DONE]\n\n")

    def _event(self, writer: asyncio.StreamWriter, body: object) -> None:
        writer.write(b"data: " + json.dumps(body).encode() + b"\n\n")
