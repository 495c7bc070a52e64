"""A stand-in for engine ranks, for protocol tests only: `python -m tests.agent.api.rank_stand_in CONFIG.json`.

It speaks the step channel under mutual TLS and computes a real function of the tokens that it was sent: the
next token is a hash of all tokens in the slot (and of the seed where the temperature is not zero). So a gap,
an overlap or a mixed-up slot changes the text, as it would with a model. It has no weights and no links.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import sys
from pathlib import Path

import msgspec

from agent.api.tls import server_context
from agent.errors import ErrorDetail
from agent.wire.framing import StreamClosed, decode, encode_frame, read_frame
from agent.wire.rank import (
    GatewayMessage,
    OpenStep,
    SampledToken,
    SamplingParams,
    SequenceSlice,
    Step,
    StepDone,
    StepFailed,
    StepOpened,
    StepRefused,
    TlsFiles,
)


class StandInConfig(msgspec.Struct, frozen=True, kw_only=True):
    deployment: str
    generation: int
    rank_id: str
    answers: bool
    """Leader of the last stage."""
    tls: TlsFiles
    vocab_size: int
    first_token: int
    """Lower ids are special and never drawn."""
    step_s: float
    """How long a step takes."""
    port_file: str
    log_file: str
    """Gets one JSON line for every step."""
    is_forgetful: bool = False
    """Computes decodes from the last token alone, as a rank with a broken KV cache would."""


def next_token(history: list[int], params: SamplingParams, *, vocab_size: int, first_token: int) -> int:
    """The function that stands for a model."""
    seed = params.seed if params.temperature > 0 else 0
    digest = hashlib.sha256(repr((history, seed)).encode()).digest()
    return first_token + int.from_bytes(digest[:8]) % (vocab_size - first_token)


class StandIn:
    def __init__(self, config: StandInConfig) -> None:
        self._config = config
        self._log = Path(config.log_file).open("ab", buffering=0)  # noqa: SIM115 -- open as long as the process
        self._histories: dict[int, list[int]] = {}
        self._params: dict[int, SamplingParams] = {}
        self._num_drafts: dict[int, int] = {}
        """Guesses in the last slice of each slot: the next one may go back behind them."""
        self._expected_step = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = self._config
        try:
            hello = decode(await read_frame(reader), GatewayMessage)
            assert isinstance(hello, OpenStep)
            if (hello.deployment, hello.generation) != (config.deployment, config.generation):
                refusal = ErrorDetail(code="E801", message=f"{config.rank_id} has generation {config.generation}")
                writer.write(encode_frame(StepRefused(error=refusal)))
                await writer.drain()
                return
            writer.write(encode_frame(StepOpened(rank_id=config.rank_id, generation=config.generation)))
            while True:
                step = decode(await read_frame(reader), GatewayMessage)
                assert isinstance(step, Step)
                await self._take(step, writer)
        except (StreamClosed, ConnectionError, ssl.SSLError):
            return
        finally:
            writer.close()

    async def _take(self, step: Step, writer: asyncio.StreamWriter) -> None:
        self._log.write(msgspec.json.encode(step) + b"\n")
        problem = self._problem_with(step)
        if problem:
            error = ErrorDetail(code="E803", message=problem)
            writer.write(encode_frame(StepFailed(step_id=step.step_id, error=error)))
            return
        drawn = [token for part in step.slices for token in self._extend(part)]
        if self._config.answers:
            await asyncio.sleep(self._config.step_s)
            writer.write(encode_frame(StepDone(step_id=step.step_id, tokens=drawn)))

    def _problem_with(self, step: Step) -> str:
        if step.step_id != self._expected_step:
            return f"step {step.step_id} came where {self._expected_step} was due"
        self._expected_step += 1
        for each in step.slices:
            if each.params is not None:
                if each.start != len(each.history):
                    return f"slot {each.slot} begins at {each.start} with {len(each.history)} tokens"
                continue
            known = len(self._histories.get(each.slot, []))
            certain = known - self._num_drafts.get(each.slot, 0)
            if each.history or not certain <= each.start <= known:
                return f"slot {each.slot} holds {certain} to {known} tokens, the slice starts at {each.start}"
        return ""

    def _extend(self, part: SequenceSlice) -> list[SampledToken]:
        if part.params is not None:
            self._histories[part.slot] = list(part.history)
            self._params[part.slot] = part.params
        history = self._histories[part.slot]
        del history[part.start :]
        history.extend(part.tokens)
        self._num_drafts[part.slot] = part.drafts
        drawn: list[SampledToken] = []
        for length in range(len(history) - part.drafts, len(history) + 1) if part.samples else ():
            drawn.append(self._draw(part, history[:length]))
            if length < len(history) and history[length] != drawn[-1].token:
                break
        return drawn

    def _draw(self, part: SequenceSlice, history: list[int]) -> SampledToken:
        params = self._params[part.slot]
        seen = history[-1:] if self._config.is_forgetful and part.params is None else history
        vocab_size, first_token = self._config.vocab_size, self._config.first_token
        token = next_token(seen, params, vocab_size=vocab_size, first_token=first_token)
        logprobs: list[tuple[int, float]] = []
        if params.logprobs >= 0:
            others = [
                first_token + (token + index) % (vocab_size - first_token) for index in range(params.logprobs)
            ]
            logprobs = [(token, -0.25), *[(other, -2.0 - index) for index, other in enumerate(others)]]
        return SampledToken(slot=part.slot, position=len(history), token=token, logprobs=logprobs)


async def _serve(config: StandInConfig) -> None:
    server = await asyncio.start_server(StandIn(config).converse, "127.0.0.1", 0, ssl=server_context(config.tls))
    _publish(Path(config.port_file), server.sockets[0].getsockname()[1])
    # Ends with the test that started it, however that one ends: the pipe from it closes.
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def _publish(path: Path, port: int) -> None:
    """In one rename, so that nobody reads half a number."""
    part = path.with_suffix(".part")
    part.write_text(str(port))
    part.rename(path)


if __name__ == "__main__":
    asyncio.run(_serve(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=StandInConfig)))
