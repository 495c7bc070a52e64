"""A GGUF file's metadata -> tokenizer and chat template, as the model's own `tokenizer.json` would have them.

Two kinds of vocabulary: `gpt2` is byte-level BPE whose text is first split by a named pattern, `llama` is
SentencePiece's BPE, whose merges follow from its scores. Patterns and defaults: llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from agent.errors import FleetError
from agent.serving.chat import ChatTemplate
from agent.serving.known_templates import template_like
from agent.serving.tokens import ModelTokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`."""
END_TOKENS = frozenset(
    {
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
        "<EOT>", "<｜end▁of▁sentence｜>",
    }
)  # fmt: skip
"""Control tokens that end an answer whatever the metadata name: it has room for few, and models have several."""

SAMPLING_OPTIONS = frozenset(
    {
        "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
        "frequency_penalty", "num_predict",
    }
)  # fmt: skip
"""Those of an Ollama model's params that are taken over; where it runs and its context are the plan's."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_TAIL}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_TAIL}"
)


class _Split(msgspec.Struct, frozen=True, kw_only=True):
    """How a named pre-tokenizer cuts a text: by each pattern in turn."""

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    """A piece that is a token is that token, whatever the merges would make of it."""
    adds_bos: bool = False
    normalises: bool = False
    """Unicode NFC, as the model's own tokenizer does it."""


_BY_LLAMA3 = _Split(patterns=(_LLAMA3,), ignores_merges=True, adds_bos=True)
_BY_QWEN2 = _Split(patterns=(_QWEN2,), normalises=True)
_BY_GPT2 = _Split(patterns=(_GPT2,))
_BY_DIGITS = _Split(patterns=(r"\p{N}", _GPT2))
SPLITS: dict[str, _Split] = {
    "llama-bpe": _BY_LLAMA3,
    "llama3": _BY_LLAMA3,
    "llama-v3": _BY_LLAMA3,
    "falcon3": _BY_LLAMA3,
    "dbrx": _Split(patterns=(_LLAMA3,)),
    "smaug-bpe": _Split(patterns=(_LLAMA3,)),
    "qwen2": _BY_QWEN2,
    "deepseek-r1-qwen": _BY_QWEN2,
    "megrez": _BY_QWEN2,
    "tekken": _Split(patterns=(_TEKKEN,), ignores_merges=True, adds_bos=True),
    "gpt-4o": _Split(patterns=(_GPT4O,)),
    "gpt-2": _BY_GPT2,
    "phi-2": _BY_GPT2,
    "olmo": _BY_GPT2,
    "smollm": _BY_DIGITS,
    "starcoder": _BY_DIGITS,
    "refact": _BY_DIGITS,
    "command-r": _BY_DIGITS,
    "minerva-7b": _BY_DIGITS,
}
"""`tokenizer.ggml.pre`, as far as our families' models have it."""


def gguf_tokens(metadata: Mapping[str, Any], *, eos_token_ids: tuple[int, ...] = ()) -> ModelTokens:
    """Tokenizer of a GGUF file. Raises FleetError E710 for one that we cannot rebuild exactly."""
    vocabulary = _Vocabulary(metadata)
    match metadata.get("tokenizer.ggml.model"):
        case "gpt2":
            tokenizer = _byte_level(vocabulary, metadata)
        case "llama":
            tokenizer = _sentencepiece(vocabulary, metadata)
        case other:
            raise FleetError("E710", f"the GGUF's tokenizer model {other!r} is not known, only gpt2 and llama")
    ends = {
        token for token, text in enumerate(vocabulary.texts) if vocabulary.is_control(token) and text in END_TOKENS
    }
    named = {vocabulary.named(key) for key in ("eos", "eot", "eom")} - {None}
    return ModelTokens(
        tokenizer, eos_token_ids=frozenset(eos_token_ids) | ends | {int(token or 0) for token in named}
    )


def gguf_chat_template(
    metadata: Mapping[str, Any],
    *,
    now: Callable[[], datetime],
    go_template: str = "",
    params: Mapping[str, Any] | None = None,
    system: str = "",
) -> ChatTemplate:
    """The file's own Jinja template; without one, that of the known form which Ollama's Go template has.

    `params` and `system` are what an Ollama model brings along: options that requests may override (`stop` always
    holds), and the system message of chats that have none.
    """
    vocabulary = _Vocabulary(metadata)
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        source = template_like(go_template)
    tokens = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    special = {
        name: vocabulary.texts[token]
        for name, key in tokens.items()
        if (token := vocabulary.named(key)) is not None
    }
    tool_source = metadata.get("tokenizer.chat_template.tool_use")
    stop = (params or {}).get("stop", ())
    options = {
        key: value
        for key, value in (params or {}).items()
        if key in SAMPLING_OPTIONS and type(value) in (int, float)
    }
    return ChatTemplate(
        source,
        special_tokens=special,
        now=now,
        tool_source=tool_source if isinstance(tool_source, str) else None,
        stop=tuple(text for text in ([stop] if isinstance(stop, str) else stop) if isinstance(text, str) and text),
        system=system,
        options=options,
    )


class _Vocabulary:
    """The lists of the tokenizer, checked to belong together."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.texts: list[str] = _strings(metadata, "tokens")
        self.kinds: list[int] = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(self.texts)
        self.scores: list[float] = metadata.get("tokenizer.ggml.scores") or []
        self._metadata = metadata
        if len(self.kinds) != len(self.texts) or len(self.scores) not in (0, len(self.texts)):
            raise FleetError(
                "E710",
                f"the GGUF has {len(self.texts)} tokens, {len(self.kinds)} types and {len(self.scores)} scores",
            )

    def named(self, which: str) -> int | None:
        """Id of the token with this part (`bos`, `eos` …), or None where the file names none that it has."""
        token = self._metadata.get(f"tokenizer.ggml.{which}_token_id")
        return token if isinstance(token, int) and 0 <= token < len(self.texts) else None

    def is_control(self, token: int) -> bool:
        return self.kinds[token] == CONTROL

    @property
    def ids(self) -> dict[str, int]:
        """Of two tokens with one text the first counts; the other is never written and reads as nothing."""
        ids: dict[str, int] = {}
        for token, text in enumerate(self.texts):
            ids.setdefault(text, token)
        return ids


def _byte_level(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    split = SPLITS.get(name)
    if split is None:
        raise FleetError(
            "E710",
            f"the GGUF's pre-tokenizer {name!r} is not known",
            hint=f"known: {', '.join(SPLITS)}; serve the model from its safetensors directory instead",
        )
    ids = vocabulary.ids
    cut = [merge.partition(" ") for merge in _strings(metadata, "merges")]
    merges = [(left, right) for left, _, right in cut]
    if any(not {left, right, left + right} <= ids.keys() for left, right in merges):
        raise FleetError("E710", "the GGUF has merges of tokens that are not in its vocabulary")
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=split.ignores_merges))
    if split.normalises:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in split.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(tokenizer, vocabulary, strips_right=False)
    _add_ends(tokenizer, vocabulary, metadata, adds_bos=split.adds_bos)
    return tokenizer


def _sentencepiece(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> Tokenizer:
    adds_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    unknown = vocabulary.named("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=_merges_of_scores(vocabulary),
            unk_token=None if unknown is None else vocabulary.texts[unknown],
            fuse_unk=True,
            byte_fallback=BYTE in vocabulary.kinds,
        )
    )
    to_marks = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *to_marks] if adds_space else to_marks)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if adds_space:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    # Phi 3's own tokenizer lets its special tokens take the space behind them
    _add_special(tokenizer, vocabulary, strips_right=metadata.get("general.architecture") == "phi3")
    _add_ends(tokenizer, vocabulary, metadata, adds_bos=True)
    return tokenizer


def _merges_of_scores(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the piece with the best score first."""
    pieces = {
        text: token for text, token in vocabulary.ids.items() if vocabulary.kinds[token] in (NORMAL, USER_DEFINED)
    }
    scores = vocabulary.scores
    if not scores:
        raise FleetError("E710", "the GGUF's tokenizer is a SentencePiece one without scores")
    merges: list[tuple[float, int, int, str, str]] = []
    for text, token in pieces.items():
        for cut in range(1, len(text)):
            left, right = pieces.get(text[:cut]), pieces.get(text[cut:])
            if left is not None and right is not None:
                merges.append((-scores[token], left, right, text[:cut], text[cut:]))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _add_special(tokenizer: Tokenizer, vocabulary: _Vocabulary, *, strips_right: bool) -> None:
    """Tokens that are found in a text before it is split; decoding leaves out those that are control tokens."""
    keep_space = {vocabulary.named("bos"), vocabulary.named("unknown")}
    tokens = []
    for token, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.kinds, strict=True)):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and text:
            strips = strips_right and token not in keep_space and text != "<|endoftext|>"
            tokens.append(AddedToken(text, special=kind != USER_DEFINED, normalized=False, rstrip=strips))
    tokenizer.add_tokens(tokens)


def _add_ends(
    tokenizer: Tokenizer, vocabulary: _Vocabulary, metadata: Mapping[str, Any], *, adds_bos: bool
) -> None:
    """What stands before and after every plain prompt."""
    ends: dict[str, tuple[str, int]] = {}
    for which, is_usual in (("bos", adds_bos), ("eos", False)):
        token = vocabulary.named(which)
        if token is not None and metadata.get(f"tokenizer.ggml.add_{which}_token", is_usual):
            ends[which] = (vocabulary.texts[token], token)
    if not ends:
        return
    single = [ends["bos"][0]] if "bos" in ends else []
    single += ["$A"]
    single += [ends["eos"][0]] if "eos" in ends else []
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(ends.values()))


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FleetError("E710", f"the GGUF has no list tokenizer.ggml.{key}")
    return value
