"""Log probabilities as clients read them."""

from __future__ import annotations

from typing import Any

from agent.serving.request import TokenDrawn
from agent.serving.tokens import ModelTokens

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI uses the same."""


def entry_of(tokens: ModelTokens, drawn: TokenDrawn, num_top: int) -> dict[str, Any]:
    """A token with its alternatives, the likeliest first: the form of OpenAI's chat and of Ollama."""
    return {
        **_entry(tokens, drawn.token, dict(drawn.logprobs).get(drawn.token, LOWEST)),
        "top_logprobs": [_entry(tokens, token, value) for token, value in top_of(drawn, num_top)],
    }


def completion_logprobs(
    tokens: ModelTokens, drawn: tuple[TokenDrawn, ...], num_top: int, offset: int
) -> dict[str, Any]:
    """OpenAI's older form for text completions; `offset` is where the first token's text starts."""
    offsets = []
    for each in drawn:
        offsets.append(offset)
        offset += len(tokens.text_of(each.token))
    return {
        "tokens": [_label(tokens, each.token) for each in drawn],
        "token_logprobs": [max(LOWEST, dict(each.logprobs).get(each.token, LOWEST)) for each in drawn],
        "top_logprobs": [
            {_label(tokens, token): max(LOWEST, value) for token, value in top_of(each, num_top)} for each in drawn
        ]
        if num_top
        else None,
        "text_offset": offsets,
    }


def top_of(drawn: TokenDrawn, num_top: int) -> list[tuple[int, float]]:
    """The likeliest alternatives, each token once: ranks list the chosen one beside them."""
    ranked = sorted(dict(drawn.logprobs).items(), key=lambda item: (-item[1], item[0]))
    return ranked[:num_top]


def _label(tokens: ModelTokens, token: int) -> str:
    """Its text, or its bytes where it is only a part of a character: two such tokens must not share a name."""
    text = tokens.text_of(token)
    if "\ufffd" not in text:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokens.bytes_of(token))


def _entry(tokens: ModelTokens, token: int, value: float) -> dict[str, Any]:
    return {
        "token": tokens.text_of(token),
        "logprob": max(LOWEST, value),
        "bytes": list(tokens.bytes_of(token)),
    }
