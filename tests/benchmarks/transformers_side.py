"""Hugging Face transformers: greedy `generate` in bfloat16 with one thread.

`python -m tests.benchmarks.transformers_side MODEL_DIR`; see `commanded`. Commands: `decode` and `prefill`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.benchmarks.commanded import obey

FIRST_TOKEN, LAST_TOKEN = 300, 4000
PROMPT = 32


class TransformersAlone:
    def __init__(self, model_dir: Path) -> None:
        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
        self._model.train(mode=False)

    def prefill(self, tokens: int) -> float:
        """Tokens a second from a prompt to the first token."""
        return tokens / self._generate_s(prompt=tokens, count=1, batch=1)

    def decode(self, tokens: int, batch: int = 1) -> float:
        """Tokens a second of all sequences together, the first one of each left out."""
        first_s = self._generate_s(prompt=PROMPT, count=1, batch=batch)
        return tokens * batch / (self._generate_s(prompt=PROMPT, count=tokens + 1, batch=batch) - first_s)

    def _generate_s(self, *, prompt: int, count: int, batch: int) -> float:
        ids = torch.randint(FIRST_TOKEN, LAST_TOKEN, (batch, prompt))
        begun = time.perf_counter()
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
        )
        elapsed_s = time.perf_counter() - begun
        assert isinstance(made, torch.Tensor)
        assert made.shape == (batch, prompt + count), made.shape
        return elapsed_s


if __name__ == "__main__":
    alone = TransformersAlone(Path(sys.argv[1]))
    obey({"decode": alone.decode, "prefill": alone.prefill})
