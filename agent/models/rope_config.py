"""Rotary embeddings as `config.json` states them: transformers 5's `rope_parameters`, or the keys before it.

Sources: transformers' `modeling_rope_utils` and the configurations of the families.
"""

from __future__ import annotations

import math
from typing import Any, cast

import msgspec

from agent.facts.model import FamilySpec, RopeKind, RopeSpec
from agent.models.problems import Problems, is_positive, positive_number

_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}
_LAYER_TYPES = ("full_attention", "sliding_attention")


class RopeDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a family's configuration assumes where the file is silent."""

    theta: float = 10_000.0
    local_theta: float | None = None
    """Of windowed layers, in a family whose layers differ."""
    original_context: int | None = None
    """A family with this one keeps `original_max_position_embeddings` beside the rope, and it has priority."""


def read_ropes(
    config: dict[str, Any],
    family: FamilySpec,
    defaults: RopeDefaults,
    *,
    head_size: int,
    max_context: int,
    problems: Problems,
) -> tuple[RopeSpec, RopeSpec | None]:
    """The rope, and that of the windowed layers where a family has one of its own."""
    stated: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key), dict | None):
            problems.add(f"{key} is {config[key]!r}, an object expected")
            return RopeSpec(theta=defaults.theta), None
        stated |= config.get(key) or {}
    reader = _Reader(config, family, defaults, head_size=head_size, max_context=max_context, problems=problems)
    if defaults.local_theta is None:
        if any(isinstance(value, dict) for value in stated.values()):
            problems.add("rotary embeddings that differ between layers are not supported")
            return RopeSpec(theta=defaults.theta), None
        return reader.read(stated, theta=config.get("rope_theta") or defaults.theta), None
    per_type = {kind: stated.pop(kind, None) or {} for kind in _LAYER_TYPES}
    # before transformers 5 a scaling was meant for the layers that attend to everything
    whole = stated | per_type["full_attention"]
    rope = reader.read(whole, theta=config.get("rope_theta") or defaults.theta)
    local_theta = config.get("rope_local_base_freq") or defaults.local_theta
    return rope, reader.read(per_type["sliding_attention"], theta=local_theta)


class _Reader:
    def __init__(
        self,
        config: dict[str, Any],
        family: FamilySpec,
        defaults: RopeDefaults,
        *,
        head_size: int,
        max_context: int,
        problems: Problems,
    ) -> None:
        self._config = config
        self._family = family
        self._head_size = head_size
        self._max_context = max_context
        self._original = defaults.original_context
        self._problems = problems

    def read(self, stated: dict[str, Any], *, theta: object) -> RopeSpec:
        problems = self._problems
        unread = RopeSpec(theta=1.0)
        kind: str = stated.get("rope_type") or stated.get("type") or "default"
        if self._family.name == "phi3" and kind in ("su", "yarn"):
            kind = "longrope"  # as it was called before it had a name
        if kind not in _NEEDED:
            problems.add(f"rope type {kind!r} is not supported, only {', '.join(_NEEDED)}")
            return unread
        stated = {**stated, "rope_theta": stated.get("rope_theta") or theta}
        for key in ("rope_theta", *_NEEDED[kind]):
            value = stated.get(key)
            is_right = all(map(is_positive, value)) if isinstance(value, list) and value else is_positive(value)
            if not is_right or isinstance(value, list) != key.endswith(("short_factor", "long_factor")):
                problems.add(f"{key} of the {kind} rope is {value!r}, a positive number expected")
                return unread
        spec = RopeSpec(
            theta=float(stated["rope_theta"]), kind=cast(RopeKind, kind), rotary_share=self._rotary_share(stated)
        )
        match spec.kind:
            case "linear":
                return msgspec.structs.replace(spec, factor=float(stated["factor"]))
            case "llama3":
                return msgspec.structs.replace(
                    spec,
                    factor=float(stated["factor"]),
                    low_freq_factor=float(stated["low_freq_factor"]),
                    high_freq_factor=float(stated["high_freq_factor"]),
                    original_context=int(stated["original_max_position_embeddings"]),
                )
            case "yarn":
                return self._yarn(spec, stated)
            case "longrope":
                return self._longrope(spec, stated)
            case _:
                return spec

    def _rotary_share(self, stated: dict[str, Any]) -> float:
        share = stated.get("partial_rotary_factor") or self._config.get("partial_rotary_factor") or 1.0
        if share != 1 and self._family.name != "phi3":
            self._problems.add(f"partial_rotary_factor {share} is not supported for {self._family.architecture}")
        elif not is_positive(share) or share > 1 or int(self._head_size * share) % 2:
            self._problems.add(f"partial_rotary_factor {share!r} of heads of {self._head_size} makes no pairs")
        return float(share)

    def _original_context(self, stated: dict[str, Any]) -> int:
        own = stated.get("original_max_position_embeddings") or self._max_context
        if self._original is not None:
            own = self._config.get("original_max_position_embeddings") or self._original
        if not is_positive(own):
            self._problems.add(f"original_max_position_embeddings is {own!r}, a positive number expected")
            return 1
        return int(own)

    def _yarn(self, spec: RopeSpec, stated: dict[str, Any]) -> RopeSpec:
        """YaRN (Peng et al., 2023); its attention factor is equation 22, with DeepSeek's `mscale` variants."""
        original = self._original_context(stated)
        read = {key: value for key, value in stated.items() if value is not None}
        factor = positive_number(read, "factor", self._problems, default=self._max_context / original)
        magnitude = read.get("attention_factor")
        if magnitude is None:
            magnitude = _yarn_magnitude(factor, 1.0)
            if read.get("mscale") and read.get("mscale_all_dim"):
                magnitude = _yarn_magnitude(factor, read["mscale"]) / _yarn_magnitude(
                    factor, read["mscale_all_dim"]
                )
        return msgspec.structs.replace(
            spec,
            factor=factor,
            original_context=original,
            magnitude=float(magnitude),
            beta_fast=positive_number(read, "beta_fast", self._problems, default=32.0),
            beta_slow=positive_number(read, "beta_slow", self._problems, default=1.0),
            truncates=bool(read.get("truncate", True)),
        )

    def _longrope(self, spec: RopeSpec, stated: dict[str, Any]) -> RopeSpec:
        """LongRoPE (Ding et al., 2024): a divisor for each pair, and one magnitude from how far it stretches."""
        original = self._original_context(stated)
        num_pairs = int(self._head_size * spec.rotary_share) // 2
        for key in ("short_factor", "long_factor"):
            if len(stated[key]) != num_pairs:
                self._problems.add(f"{key} has {len(stated[key])} numbers, {num_pairs} pairs are rotated")
        factor = stated.get("factor") or self._max_context / original
        magnitude = stated.get("attention_factor")
        if magnitude is None:
            magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return msgspec.structs.replace(
            spec,
            factor=float(factor),
            original_context=original,
            magnitude=float(magnitude),
            short_factors=tuple(float(value) for value in stated["short_factor"]),
            long_factors=tuple(float(value) for value in stated["long_factor"]),
        )


def _yarn_magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
