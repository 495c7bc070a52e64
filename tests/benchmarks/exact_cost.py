"""What exact mode costs: one rank with it and one without, in alternation in this process, medians of five ratios.

`python -m tests.benchmarks.exact_cost MODEL_DIR [DTYPE]`
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import msgspec
import torch

from agent.facts.model import Dtype
from agent.models.spec import read_spec
from agent.wire.rank import SamplingParams, SequenceSlice
from tests.agent.engine.models import stage
from tests.agent.engine.threads import ThreadReplica, plan_links, rank_config
from tests.benchmarks.alternate import alternate

STREAMS = 16
CONTEXT = 1024
CHUNK = 256
PREFILL_TOKENS = 512
DECODE_STEPS = 12
LOAD_S = 120.0


class Rank:
    def __init__(self, model_dir: Path, dtype: Dtype, *, is_exact: bool) -> None:
        spec = read_spec(model_dir)
        extents = stage(spec, (0, spec.num_layers))
        config = rank_config(
            spec,
            extents[0],
            folder=Path(tempfile.mkdtemp()),
            model_dir=model_dir,
            dtype=dtype,
            context=CONTEXT,
            batch=STREAMS,
            is_exact=is_exact,
        )
        self._replica = ThreadReplica([msgspec.structs.replace(config, prefill_chunk=CHUNK)])
        self._replica.link(plan_links([extents], generation=1, timeout_s=LOAD_S))
        self._random = random.Random(1)
        self._vocab_size = spec.vocab_size

    def prefill(self, slot: int = 0, tokens: int = PREFILL_TOKENS) -> float:
        """Tokens a second."""
        prompt = self._random.choices(range(self._vocab_size), k=tokens)
        begun = time.perf_counter()
        for start in range(0, tokens, CHUNK):
            piece = prompt[start : start + CHUNK]
            params = SamplingParams() if start == 0 else None
            is_last = start + CHUNK >= tokens
            self._replica.step([SequenceSlice(slot, start, piece, is_last, params)])
        return tokens / (time.perf_counter() - begun)

    def decode(self, streams: int) -> float:
        """Tokens a second of all streams, behind 100 tokens each."""
        for slot in range(streams):
            self.prefill(slot, 100)
        begun = time.perf_counter()
        for position in range(100, 100 + DECODE_STEPS):
            self._replica.step([SequenceSlice(slot, position, [slot], True) for slot in range(streams)])
        return streams * DECODE_STEPS / (time.perf_counter() - begun)

    def decode_one(self) -> float:
        return self.decode(1)

    def decode_many(self) -> float:
        return self.decode(STREAMS)

    def close(self) -> None:
        self._replica.close()


def main() -> int:
    model_dir = Path(sys.argv[1])
    dtype = cast(Dtype, sys.argv[2] if len(sys.argv) > 2 else "bfloat16")
    torch.set_num_threads(1)
    exact, plain = Rank(model_dir, dtype, is_exact=True), Rank(model_dir, dtype, is_exact=False)
    print(f"{model_dir.name}, {dtype}, one thread: exact mode's speed as a share of the plain one's")
    for name, ours, other in (
        ("decode, one stream", exact.decode_one, plain.decode_one),
        (f"decode, {STREAMS} streams", exact.decode_many, plain.decode_many),
        (f"prefill of {PREFILL_TOKENS}", exact.prefill, plain.prefill),
    ):
        measured = alternate("tok/s", ours, other)
        print(f"{name:22} {measured.ratio:.2f}", flush=True)
    exact.close()
    plain.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
