"""The gateway's end of the step channel: one mutual-TLS connection to a rank, steps out, results in."""

from __future__ import annotations

import asyncio
import ssl

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.wire.framing import StreamClosed, decode, encode_frame, read_frame
from agent.wire.gateway import RankEndpoint
from agent.wire.identity import dns_name
from agent.wire.rank import OpenStep, RankMessage, StepDone, StepFailed, StepOpened, StepRefused

OPEN_TIMEOUT_S = 10.0


class RankLost(Exception):
    """The rank can take no further step; `error` says why. Handled by its `Replica`."""

    def __init__(self, error: ErrorDetail, *, is_end_of_stream: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.is_end_of_stream = is_end_of_stream


class StepChannel:
    """An open connection. Writes never wait: the scheduler bounds the steps in flight."""

    def __init__(self, endpoint: RankEndpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.endpoint = endpoint
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(
        cls, endpoint: RankEndpoint, *, tls: ssl.SSLContext, cluster: str, hello: OpenStep
    ) -> StepChannel:
        """Connect, check that it is its host's, and open the steps of a generation. Raises FleetError E811."""
        where = f"rank {endpoint.rank_id} at {endpoint.address}:{endpoint.port}"
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    endpoint.address, endpoint.port, ssl=tls, server_hostname=dns_name(endpoint.host, cluster)
                )
                try:
                    writer.write(encode_frame(hello))
                    answer = decode(await read_frame(reader), RankMessage)
                except BaseException:
                    writer.transport.abort()
                    raise
        except TimeoutError as error:
            raise FleetError(
                "E811", f"{where} did not open its steps within {OPEN_TIMEOUT_S:.0f} s", host=endpoint.host
            ) from error
        except (OSError, msgspec.DecodeError) as error:
            raise FleetError("E811", f"{where} cannot be reached: {error}", host=endpoint.host) from error
        match answer:
            case StepOpened(rank_id=rank_id, generation=generation) if (
                rank_id == endpoint.rank_id and generation == hello.generation
            ):
                return cls(endpoint, reader, writer)
            case StepRefused(error=refusal):
                problem = FleetError.from_detail(refusal, host=endpoint.host)
            case _:
                problem = FleetError("E811", f"{where} answered as {answer}", host=endpoint.host)
        writer.transport.abort()
        raise problem

    def send(self, frame: bytes) -> None:
        self._writer.write(frame)

    async def receive(self) -> StepDone:
        """The next result. Raises RankLost at the end of the stream or on the rank's word."""
        rank_id, host = self.endpoint.rank_id, self.endpoint.host
        try:
            message = decode(await read_frame(self._reader), RankMessage)
        except (StreamClosed, OSError) as error:
            lost = ErrorDetail(code="E810", message=f"rank {rank_id} closed its step channel: {error}", host=host)
            raise RankLost(lost, is_end_of_stream=True) from error
        except msgspec.DecodeError as error:
            lost = ErrorDetail(code="E810", message=f"rank {rank_id} sent what is no message: {error}", host=host)
            raise RankLost(lost, is_end_of_stream=False) from error
        match message:
            case StepDone():
                return message
            case StepFailed(error=failure):
                failure = msgspec.structs.replace(failure, host=failure.host or host)
                raise RankLost(failure, is_end_of_stream=False)
            case _:
                lost = ErrorDetail(code="E810", message=f"rank {rank_id} sent {message} unasked", host=host)
                raise RankLost(lost, is_end_of_stream=False)

    def close(self) -> None:
        """At once; unsent steps are of no use to anyone any more."""
        self._writer.transport.abort()
