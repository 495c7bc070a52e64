"""Messages to the prompt that a model was trained on: Hugging Face chat templates, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent.errors import FleetError
from agent.serving.tools import THINK_CLOSES, format_of

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For base models, which have no template: a transcript, ended by the stop string of its next turn."""
PLAIN_STOP = ("\n\nuser:", "\n\nsystem:")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


class TemplateRefused(Exception):
    """The template does not take these messages; the text says why, in the template's own words."""


class ChatTemplate:
    """A compiled template with the model's special tokens. `is_plain` when the model brought none."""

    def __init__(
        self,
        source: str | None,
        *,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime],
        tool_source: str | None = None,
        stop: tuple[str, ...] = (),
        system: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`tool_source`: the template for requests with tools, where the model has one of its own for them.

        `stop`, `system` and `options` are what an Ollama model brings along: texts that end every answer, the
        system message of chats that have none, and options of requests that do not say otherwise.
        """
        self.is_plain = source is None
        self.source = PLAIN_TEMPLATE if source is None else source
        self.stop = (*stop, *(PLAIN_STOP if source is None else ()))
        self.options = dict(options or {})
        self._system = system
        self.tool_format = format_of(tool_source or self.source)
        """How it calls tools; None: its template knows of none, or of none that we can read."""
        self.thinks = THINK_CLOSES in self.source
        """It may think before it answers."""
        self.can_skip_thinking = "enable_thinking" in self.source
        self._special_tokens = dict(special_tokens)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationBlock],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(self.source)
            self._tool_template = environment.from_string(tool_source) if tool_source else self._template
        except TemplateError as error:
            raise FleetError("E710", f"the model's chat template cannot be read: {error}") from error

    @classmethod
    def load(cls, model_dir: Path, *, now: Callable[[], datetime]) -> ChatTemplate:
        """Read `chat_template.jinja`, or the entry in `tokenizer_config.json`. Raises FleetError E710."""
        path = model_dir / "tokenizer_config.json"
        try:
            config = json.loads(path.read_text())
        except FileNotFoundError:
            config = {}
        except json.JSONDecodeError as error:
            raise FleetError("E710", f"{path} cannot be read: {error}") from error
        try:
            source: str | None = (model_dir / "chat_template.jinja").read_text()
        except FileNotFoundError:
            source = _default_template(config.get("chat_template"))
        special = {name: _token_text(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
        tool_source = _named_template(config.get("chat_template"), "tool_use")
        return cls(source, special_tokens=special, now=now, tool_source=tool_source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinks: bool | None = None,
    ) -> str:
        """The prompt, up to where the assistant speaks. Raises TemplateRefused.

        `tools` as OpenAI's API has them, which is how templates want them. `thinks` None: as the template likes.
        """
        switch = {} if thinks is None else {"enable_thinking": thinks}
        if self._system and not any(message.get("role") == "system" for message in messages):
            messages = [{"role": "system", "content": self._system}, *messages]
        template = self._tool_template if tools else self._template
        try:
            return template.render(
                messages=list(messages),
                tools=list(tools) or None,
                add_generation_prompt=True,
                **switch,
                **self._special_tokens,
            )
        # A template is a program of the model's author: what it raises over odd messages is not ours to list.
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise TemplateRefused(str(error)) from error


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; for serving it is transparent."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _default_template(entry: str | Sequence[Mapping[str, str]] | None) -> str | None:
    """Newer models list several templates by name; `default` is the one for chatting."""
    if entry is None or isinstance(entry, str):
        return entry
    by_name = {item["name"]: item["template"] for item in entry}
    return by_name.get("default", next(iter(by_name.values()), None))


def _named_template(entry: str | Sequence[Mapping[str, str]] | None, name: str) -> str | None:
    if entry is None or isinstance(entry, str):
        return None
    return next((item["template"] for item in entry if item["name"] == name), None)


def _token_text(entry: str | Mapping[str, Any]) -> str:
    return entry if isinstance(entry, str) else str(entry["content"])


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As transformers defines it: plain JSON, not jinja2's HTML-safe one."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
