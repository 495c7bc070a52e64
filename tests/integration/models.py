"""Models for lab clusters: small, mostly untrained, without an end of text: a stream lasts as long as is asked."""

from __future__ import annotations

import email.message
import inspect
import json
import textwrap
from pathlib import Path

from odctl.demo_model import DemoChoices, write_demo_model


def write_endless_model(
    target: Path,
    *,
    layers: int = 6,
    hidden: int = 128,
    vocab: int = 512,
    steps: int = 0,
    reverses_text: bool = False,
) -> Path:
    """`target`, once it holds the model; of a text read backwards it has other tokens."""
    documents = [inspect.getsource(module).split("\n\n") for module in (textwrap, email.message)]
    if reverses_text:
        documents = [[part[::-1] for part in document] for document in documents]
    choices = DemoChoices(layers=layers, hidden=hidden, vocab=vocab, steps=steps)
    write_demo_model(target, choices, documents=documents)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((target / name).read_text())
        del content["eos_token_id"]
        (target / name).write_text(json.dumps(content))
    return target
