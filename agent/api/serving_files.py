"""Tokenizer and chat template of a model, from Hugging Face's small files or out of a GGUF header. Blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from agent.models.files import header_path, read_ollama_text
from agent.models.gguf_header import read_gguf_metadata
from agent.models.ollama_store import read_params
from agent.serving.chat import ChatTemplate
from agent.serving.gguf_tokens import gguf_chat_template, gguf_tokens
from agent.serving.tokens import ModelTokens

log = logging.getLogger(__name__)


def load_serving_files(
    model_path: Path, *, eos_token_ids: tuple[int, ...], now: Callable[[], datetime]
) -> tuple[ModelTokens, ChatTemplate]:
    """Of a whole model, or of the small files that were fetched of it. Raises E704 and E710."""
    header = header_path(model_path)
    if header is None:
        tokens = ModelTokens.load(model_path, eos_token_ids=eos_token_ids)
        return tokens, ChatTemplate.load(model_path, now=now)
    metadata = read_gguf_metadata(header)
    params = read_ollama_text(model_path, "params")
    chat = gguf_chat_template(
        metadata,
        now=now,
        go_template=read_ollama_text(model_path, "template"),
        params=read_params(params.encode(), where=f"params of {model_path}") if params else None,
        system=read_ollama_text(model_path, "system"),
    )
    if chat.is_plain:
        log.warning("chats are put plainly", extra={"path": str(model_path), "reason": "no known chat template"})
    return gguf_tokens(metadata, eos_token_ids=eos_token_ids), chat
