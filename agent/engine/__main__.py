"""`python -m agent.engine CONFIG.json`: one rank, from its start file to its exit code.

`python -m agent.engine check` measures what quantisation costs instead: a `CheckConfig` comes on standard input,
and an `AccuracyReport`, or the `ErrorDetail` with exit code 1, leaves on standard output. `probe` measures a device
or links in the same way, from a `DeviceProbeConfig` or a `LinkProbeConfig`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.wire.accuracy import AccuracyReport, CheckConfig
from agent.wire.probe import (
    LOAD_LIMIT_S,
    DeviceProbeConfig,
    DeviceReport,
    LinkProbeConfig,
    LinkReport,
    ModelProbeConfig,
    ModelReport,
)
from agent.wire.rank import RankConfig

_FIELDS_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message"}


class JsonLines(logging.Formatter):
    """One JSON object a line: the event's name and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in _FIELDS_OF_EVERY_RECORD}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"at": f"{stamp}Z", "level": record.levelname.lower(), "event": record.getMessage(), **fields}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _log_json_lines() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _import_torch(config: RankConfig) -> None:
    """Loading its libraries holds the interpreter, for long on a cold disk.

    So it is done before the control socket is there: a supervisor takes a rank that fell silent for hung, but waits
    for one that has not spoken yet.
    """
    import torch

    import agent.engine.executor  # noqa: F401 - all that the engine thread needs
    from agent.engine.memory import wake_device

    wake_device(torch.device(config.device))


async def _run(config: RankConfig) -> int:
    from agent.engine.process import RankProcess

    return await RankProcess(config).run()


def _check() -> int:
    """Measure a model and say what came of it. Ends by SIGALRM at its limit, even when its agent is gone."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=CheckConfig)
    signal.alarm(config.limit_s)
    from agent.engine.accuracy import measure

    try:
        answer: AccuracyReport | ErrorDetail = measure(config)
    except FleetError as error:
        answer = error.detail
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    return 0 if isinstance(answer, AccuracyReport) else 1


def _probe() -> int:
    """Measure a device or links and say what came of it. Ends by SIGALRM: its limit counts once torch is there."""
    config = msgspec.json.decode(
        sys.stdin.buffer.read(), type=DeviceProbeConfig | LinkProbeConfig | ModelProbeConfig
    )
    signal.alarm(LOAD_LIMIT_S + config.limit_s)
    answer: DeviceReport | LinkReport | ModelReport | ErrorDetail
    try:
        if isinstance(config, DeviceProbeConfig):
            from agent.engine.device_probe import measure_device

            signal.alarm(config.limit_s)
            answer = measure_device(config)
        elif isinstance(config, ModelProbeConfig):
            from agent.engine.model_probe import measure_model

            signal.alarm(config.limit_s)
            answer = measure_model(config)
        else:
            from agent.engine.link_probe import measure_links

            signal.alarm(config.limit_s)
            answer = measure_links(config)
    except FleetError as error:
        answer = error.detail
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    return 1 if isinstance(answer, ErrorDetail) else 0


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m agent.engine CONFIG.json | check | probe", file=sys.stderr)  # noqa: T201 - no log yet
        return 3
    if argv in (["check"], ["probe"]):
        _log_json_lines()
        return _check() if argv == ["check"] else _probe()
    try:
        config = msgspec.json.decode(Path(argv[0]).read_bytes(), type=RankConfig)
    except (OSError, msgspec.DecodeError) as error:
        print(f"error[E101]: {argv[0]}: {error}", file=sys.stderr)  # noqa: T201
        return 3
    _log_json_lines()
    # a rank outlives the terminal and the agent that started it; SIGTERM and StopRank end it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_torch(config)
    return asyncio.run(_run(config))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    # no interpreter teardown: gloo's threads may outlive what they use, and terminate() would hide our exit code
    os._exit(code)
