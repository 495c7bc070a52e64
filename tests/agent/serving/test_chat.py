"""Chat templates behave as in transformers, and cannot leave their sandbox."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from agent.errors import FleetError
from agent.serving.chat import PLAIN_STOP, ChatTemplate, TemplateRefused
from tests.agent.serving.tokenizer import CHAT_TEMPLATE, small_tokenizer, write_tokenizer

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello <b>& you "},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Count"},
]
LLAMA3_STYLE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {{- '<|start|>' + message['role'] + '\\n' + message['content'] | tojson + eos_token }}
    {%- generation %}{{ loop.index }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
{%- endif %}"""


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=SPECIAL, now=lambda: NOW)


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, LLAMA3_STYLE])
def test_a_template_renders_as_transformers_renders_it(source: str) -> None:
    reference = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=small_tokenizer(), chat_template=source, **SPECIAL
    )
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert template(source).render(MESSAGES) == expected


def test_a_template_can_refuse_and_says_why() -> None:
    with pytest.raises(TemplateRefused, match="unknown role judge"):
        template(CHAT_TEMPLATE).render([{"role": "judge", "content": "x"}])


@pytest.mark.parametrize("source", ["{{ messages[0].content.x.y }}", "{{ 1 // 0 }}", "{{ messages[0] + 1 }}"])
def test_an_error_inside_a_template_is_a_refusal(source: str) -> None:
    with pytest.raises(TemplateRefused):
        template(source).render(MESSAGES)


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(TemplateRefused):
        template(source).render(MESSAGES)


def test_the_date_comes_from_the_clock_that_is_passed() -> None:
    assert template("{{ strftime_now('%d %b %Y') }}").render(MESSAGES) == "04 Mar 2026"


def test_json_keeps_letters_and_html_as_they_are() -> None:
    message = [{"role": "user", "content": "é<b>"}]
    assert template("{{ messages[0].content | tojson }}").render(message) == '"é<b>"'


def test_a_model_without_template_gets_a_transcript_that_stops_at_the_next_turn() -> None:
    plain = template(None)
    assert plain.is_plain
    assert plain.stop == PLAIN_STOP
    assert plain.render([{"role": "user", "content": "Hi"}]) == "user: Hi\n\nassistant:"


def test_a_template_file_goes_before_the_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert ChatTemplate.load(tmp_path, now=lambda: NOW).source == CHAT_TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    assert ChatTemplate.load(tmp_path, now=lambda: NOW).render(MESSAGES) == "<|end|>"


def test_of_several_templates_the_default_one_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert ChatTemplate.load(tmp_path, now=lambda: NOW).render(MESSAGES) == "D"


def test_a_broken_template_is_found_when_the_model_is_attached() -> None:
    with pytest.raises(FleetError, match="chat template") as broken:
        template("{% for %}")
    assert broken.value.code == "E710"
