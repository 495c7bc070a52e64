"""Has a model's accuracy measured by a process of the engine: one at a time on a host, and not for ever."""

from __future__ import annotations

import logging

from agent.errors import FleetError
from agent.supervisor.measurement import MeasurementDied, run_measurement
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
        try:
            return await run_measurement(
                "check",
                config,
                AccuracyReport,
                paths=self._paths,
                log_name=LOG_NAME,
                threads=config.threads,
                host=config.host,
            )
        except MeasurementDied as death:
            log.error("accuracy check died", extra={"exit_status": death.status})
            raise FleetError(
                "E807",
                f"the check of {config.model.name} ended with status {death.status}",
                hint=f"the log {LOG_NAME} of that host says why; a check may take {CHECK_LIMIT_S} s",
                host=config.host,
            ) from death
