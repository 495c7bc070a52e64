"""Models for lab clusters: untrained, small, and without an end of text: a stream lasts as long as is asked."""

from __future__ import annotations

import email.message
import inspect
import json
import textwrap
from pathlib import Path

from odctl.demo_model import DemoChoices, write_demo_model


def write_endless_model(target: Path, *, layers: int = 6, hidden: int = 128, vocab: int = 512) -> Path:
    """`target`, once it holds the model."""
    documents = [inspect.getsource(module).split("\n\n") for module in (textwrap, email.message)]
    choices = DemoChoices(layers=layers, hidden=hidden, vocab=vocab, steps=0)
    write_demo_model(target, choices, documents=documents)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((target / name).read_text())
        del content["eos_token_id"]
        (target / name).write_text(json.dumps(content))
    return target
