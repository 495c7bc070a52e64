"""A small real tokenizer for tests: byte-level BPE trained on texts of the standard library."""

from __future__ import annotations

import email.message
import functools
import inspect
import json
import textwrap
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 512
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "<|{{ message.role }}|>\n{{ message.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
BOS, EOS = 0, 1


@functools.cache
def small_tokenizer() -> Tokenizer:
    """Byte-level BPE of `VOCAB_SIZE` tokens, so every text and every token sequence is valid."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [inspect.getsource(textwrap), inspect.getsource(email.message)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", BOS)]
    )
    return tokenizer


def write_tokenizer(model_dir: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json, as a model directory has them."""
    model_dir.mkdir(parents=True, exist_ok=True)
    small_tokenizer().save(str(model_dir / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS]}))
