"""Which token has which id: as much of a tokenizer as tells whether two models speak of the same tokens.

Read from headers and JSON alone; whoever turns text into tokens loads the whole of it (`serving.tokens`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import FleetError
from agent.models.files import HEADER_FILE, header_path
from agent.models.gguf_header import read_gguf_metadata
from agent.wire.agent import ManifestFile, ModelManifest

TOKENIZER_FILE = "tokenizer.json"
_UNUSED = 5
"""Of GGUF's token types: an id that only pads the vocabulary."""


def vocabulary_file(manifest: ModelManifest) -> ManifestFile:
    """The file of a model that has its vocabulary. Raises E710 when it has none that can be served."""
    files = {file.name: file for file in manifest.files}
    for name in (HEADER_FILE, TOKENIZER_FILE):
        if name in files:
            return files[name]
    raise FleetError(
        "E710",
        f"model {manifest.spec.name} has no {TOKENIZER_FILE}",
        hint="only models with a fast tokenizer can be served; save it with transformers' AutoTokenizer",
    )


def read_vocabulary(model_path: Path) -> dict[int, str]:
    """Tokens by id, without those that only pad; the path may hold no more than `vocabulary_file`. Raises E710."""
    header = header_path(model_path)
    try:
        if header is not None:
            return _of_gguf(read_gguf_metadata(header))
        return _of_tokenizer(json.loads((model_path / TOKENIZER_FILE).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FleetError("E710", f"the vocabulary of {model_path} cannot be read: {error!r}") from error


def first_difference(one: Mapping[int, str], other: Mapping[int, str]) -> int | None:
    """The least id to which both give a token, and not the same one; None when there is none."""
    return min((token for token in one.keys() & other.keys() if one[token] != other[token]), default=None)


def _of_gguf(metadata: Mapping[str, Any]) -> dict[int, str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens)
    return {index: text for index, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED}


def _of_tokenizer(content: Mapping[str, Any]) -> dict[int, str]:
    """`model.vocab` has ids by token, or, of a Unigram model, tokens with their scores in order."""
    pieces = content["model"]["vocab"]
    if isinstance(pieces, list):
        vocabulary = {index: str(piece[0]) for index, piece in enumerate(pieces)}
    else:
        vocabulary = {int(index): str(text) for text, index in pieces.items()}
    added = content.get("added_tokens") or []
    return vocabulary | {int(token["id"]): str(token["content"]) for token in added}
