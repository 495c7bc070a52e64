"""Has a model's accuracy measured by a process of the engine: one at a time on a host, and not for ever."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.supervisor.paths import HostPaths
from agent.supervisor.weights import WeightStore
from agent.wire.accuracy import AccuracyReport, CheckConfig, CheckModel
from agent.wire.agent import AgentConfig, ModelQuery

log = logging.getLogger(__name__)

CHECK_LIMIT_S = 1800
"""Of one check; the process ends itself by then."""
LOG_NAME = "accuracy"


class AccuracyChecks:
    def __init__(self, config: AgentConfig, paths: HostPaths, weights: WeightStore) -> None:
        self._config = config
        self._paths = paths
        self._weights = weights
        self._is_busy = False

    async def check(self, request: CheckModel) -> AccuracyReport:
        """Raises E501 while another check runs here, E701 without the model, E804 when it does not fit."""
        if self._is_busy:
            raise FleetError(
                "E501", "a model is being checked here already", hint="ask again later", host=self._config.host
            )
        self._is_busy = True
        try:
            query = ModelQuery(digest=request.digest, path=request.path)
            manifest = await self._weights.manifest(query)
            model_dir = await self._weights.directory(query)
            return await self._measure(
                CheckConfig(
                    host=self._config.host,
                    model=manifest.spec,
                    model_dir=str(model_dir),
                    quantisations=request.quantisations,
                    dtype=request.dtype,
                    threads=self._config.threads,
                    limit_s=CHECK_LIMIT_S,
                )
            )
        finally:
            self._is_busy = False

    async def _measure(self, config: CheckConfig) -> AccuracyReport:
        self._paths.logs.mkdir(parents=True, exist_ok=True)
        environment = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
        with self._paths.log(LOG_NAME).open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "agent.engine",
                "check",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env={**os.environ, **environment},
            )
        try:
            answer, _ = await process.communicate(msgspec.json.encode(config))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return msgspec.json.decode(answer, type=AccuracyReport)
        if process.returncode == 1 and answer:
            raise FleetError.from_detail(msgspec.json.decode(answer, type=ErrorDetail), host=config.host)
        log.error("accuracy check died", extra={"exit_status": process.returncode})
        raise FleetError(
            "E807",
            f"the check of {config.model.name} ended with status {process.returncode}",
            hint=f"the log {LOG_NAME} of that host says why; a check may take {CHECK_LIMIT_S} s",
            host=config.host,
        )
