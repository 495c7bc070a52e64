"""A process of the engine that measures: a configuration in, a report or what went wrong out, then it is gone."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Literal, TypeVar

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.supervisor.paths import HostPaths

Report = TypeVar("Report", bound=msgspec.Struct)


class MeasurementDied(Exception):
    """It ended without an answer. Whoever asked says what that means."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status
        """As asyncio has it: negative for a signal."""


HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Weights that a probe makes lie in pages of 2 MiB, as those do that ranks map: in small ones they are read at half
the rate (5.6 against 10.9 GB/s in one run)."""


async def run_measurement(
    verb: Literal["check", "probe"],
    config: msgspec.Struct,
    kind: type[Report],
    *,
    paths: HostPaths,
    log_name: str,
    threads: int,
    host: str,
    limit_s: float | None = None,
) -> Report:
    """`python -m agent.engine VERB` to its end, or killed after `limit_s`; whatever happens, it is gone afterwards.

    Raises the FleetError that it answers with, and MeasurementDied.
    """
    paths.logs.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    if verb == "probe":
        environment["GLIBC_TUNABLES"] = HUGE_PAGES
    with paths.log(log_name).open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent.engine",
            verb,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            env={**os.environ, **environment},
        )
    try:
        async with asyncio.timeout(limit_s):
            answer, _ = await process.communicate(msgspec.json.encode(config))
    except TimeoutError:
        answer = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    status = process.returncode
    assert status is not None, "it was waited for"
    if status == 0:
        return msgspec.json.decode(answer, type=kind)
    if status == 1 and answer:
        raise FleetError.from_detail(msgspec.json.decode(answer, type=ErrorDetail), host=host)
    raise MeasurementDied(status)
