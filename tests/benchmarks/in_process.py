"""The engine alone: one rank's executor in this process, without gateway, sockets or scheduler.

`python -m tests.benchmarks.in_process MODEL_DIR [QUANTISATION]`; see `commanded`. Commands: `decode` and `prefill`,
tokens a second.
"""

from __future__ import annotations

import hashlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import msgspec
import torch

from agent.facts.model import Quantisation
from agent.models.spec import read_spec
from agent.wire.rank import SamplingParams, SequenceSlice
from tests.agent.engine.models import stage
from tests.agent.engine.threads import ThreadReplica, plan_links, rank_config
from tests.benchmarks.commanded import obey

CONTEXT = 2048
CHUNK = 512
FIRST_TOKEN = 300
LAST_TOKEN = 4000
LOAD_S = 120.0


class EngineAlone:
    def __init__(self, model_dir: Path, quantisation: str) -> None:
        torch.set_num_threads(1)
        # As ranks of a deployment have it: packed shards are kept under the digest of their model.
        digest = hashlib.sha256(str(model_dir).encode()).hexdigest()
        spec = msgspec.structs.replace(read_spec(model_dir), digest=digest)
        extents = stage(spec, (0, spec.num_layers))
        config = rank_config(
            spec,
            extents[0],
            folder=Path(tempfile.mkdtemp()),
            model_dir=model_dir,
            dtype="bfloat16",
            context=CONTEXT,
            batch=2,
        )
        config = msgspec.structs.replace(
            config,
            quantisation=cast(Quantisation, quantisation),
            prefill_chunk=CHUNK,
            cache_dir=str(model_dir.parent / "packed"),
        )
        self._replica = ThreadReplica([config])
        self._replica.link(plan_links([extents], generation=1, timeout_s=LOAD_S))
        self._random = random.Random(1)
        self._token, self._position = 0, 0

    def prefill(self, tokens: int) -> float:
        prompt = [self._random.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(tokens)]
        begun = time.perf_counter()
        for start in range(0, tokens, CHUNK):
            is_last = start + CHUNK >= tokens
            piece = SequenceSlice(
                slot=0,
                start=start,
                tokens=prompt[start : start + CHUNK],
                samples=is_last,
                params=SamplingParams() if start == 0 else None,
            )
            drawn = self._replica.step([piece])
        self._token, self._position = drawn[0].token, tokens
        return tokens / (time.perf_counter() - begun)

    def decode(self, tokens: int) -> float:
        """Behind a short prompt, greedily."""
        self.prefill(32)
        begun = time.perf_counter()
        for _ in range(tokens):
            piece = SequenceSlice(slot=0, start=self._position, tokens=[self._token], samples=True)
            self._token = self._replica.step([piece])[0].token
            self._position += 1
        return tokens / (time.perf_counter() - begun)


if __name__ == "__main__":
    engine = EngineAlone(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "none")
    obey({"decode": engine.decode, "prefill": engine.prefill})
