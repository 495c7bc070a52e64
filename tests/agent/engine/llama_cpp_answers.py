"""Asks llama.cpp: a script of its own, run by the Python of the benchmarks' folder, which has `llama_cpp`.

    python llama_cpp_answers.py MODEL.gguf OUT.npz COUNT TOKEN…

OUT gets `logits` (after every token of the prompt, in float32) and `greedy`, the COUNT tokens that follow it.
"""

from __future__ import annotations

import sys
from typing import Any

import llama_cpp
import numpy as np


def main(path: str, out: str, count: int, prompt: list[int]) -> None:
    model: Any = llama_cpp.Llama(path, n_ctx=512, n_threads=1, verbose=False, logits_all=True, type_k=0, type_v=0)
    model.eval(prompt)
    logits = np.array(model.scores[: len(prompt)], np.float32)
    greedy: list[int] = []
    for _ in range(count):
        token = int(model.scores[model.n_tokens - 1].argmax())
        greedy.append(token)
        model.eval([token])
    np.savez(out, logits=logits, greedy=np.array(greedy))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(token) for token in sys.argv[4:]])
