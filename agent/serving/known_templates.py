"""Chat formats that are known by their marks, for models whose template is written in Go and not in Jinja.

Ollama's Go templates are not run: what they print is one of a few formats, which the marks in them tell apart (as
llama.cpp's `llm_chat_detect_template` does).
"""

from __future__ import annotations

_GENERATION = "{% if add_generation_prompt %}"
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    + _GENERATION
    + "<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    + _GENERATION
    + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_PHI3 = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    + _GENERATION
    + "<|assistant|>\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% set state = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set state.system = message.content + '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{% if message.role == 'user' %}{{ state.system }}{% set state.system = '' %}{% endif %}"
    "{{ message.content | trim }}<end_of_turn>\n{% endif %}{% endfor %}"
    + _GENERATION
    + "<start_of_turn>model\n{% endif %}"
)
_INST = (
    "{{ bos_token }}{% set state = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set state.system = message.content + '\n\n' %}"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% else %}[INST] {{ state.system }}{{ message.content }} [/INST]{% set state.system = '' %}"
    "{% endif %}{% endfor %}"
)
_BY_MARK: tuple[tuple[str, str], ...] = (
    ("<|im_start|>", _CHATML),
    ("<|start_header_id|>", _LLAMA3),
    ("<start_of_turn>", _GEMMA),
    ("<|end|>", _PHI3),
    ("[INST]", _INST),
)


def template_like(go_template: str) -> str | None:
    """A Jinja template of the format that this Go template prints, or None for one that is not known."""
    return next((template for mark, template in _BY_MARK if mark in go_template), None)
