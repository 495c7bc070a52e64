"""Of models that see or hear, the language part: its config and its tensors as if it stood alone."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.facts.model import TensorEntry


class LanguagePart(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str
    """Of the language model alone."""
    prefix: str
    """Before its tensors' names."""
    others: tuple[str, ...]
    """What the names of all other tensors begin with."""


LANGUAGE_PARTS: dict[str, LanguagePart] = {
    "Gemma3ForConditionalGeneration": LanguagePart(
        architecture="Gemma3ForCausalLM",
        prefix="language_model.",
        others=("vision_tower.", "multi_modal_projector."),
    )
}


def language_part_of(config: dict[str, Any]) -> LanguagePart | None:
    """The part to run of a model with this config; None when it is a language model and nothing else."""
    named = config.get("architectures")
    return LANGUAGE_PARTS.get(named[0]) if isinstance(named, list) and named and isinstance(named[0], str) else None


def language_config(config: dict[str, Any], part: LanguagePart) -> dict[str, Any]:
    """The config of the part, with what the whole says and it does not (end tokens, quantisation)."""
    text = config.get("text_config")
    own = text if isinstance(text, dict) else {}
    return {**config, **own, "architectures": [part.architecture]}


def language_tensors(index: tuple[TensorEntry, ...], part: LanguagePart) -> tuple[TensorEntry, ...]:
    """The part's tensors under the names that they have in a language model alone; others' are left out."""
    return tuple(
        msgspec.structs.replace(entry, name=entry.name.removeprefix(part.prefix))
        for entry in index
        if not entry.name.startswith(part.others)
    )
