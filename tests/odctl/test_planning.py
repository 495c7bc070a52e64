"""The words of a plan: options of `odctl plan`, as they are typed in the terminal UI."""

from __future__ import annotations

import inspect
from pathlib import Path

import click
import pytest

from agent.errors import FleetError
from odctl.commands.plan import command
from odctl.inventory import parse_inventory
from odctl.planning import PlanAsk, ask_words, chosen_hosts, hosts_and_devices, parse_ask

INVENTORY = """
[cluster]
name = "lab"

[hosts.gpu01]
labels = { rack = "a" }
[hosts.gpu02]
labels = { rack = "b" }
[hosts.gpu03]
labels = { rack = "b" }
"""


def test_a_pin_or_an_exclusion_is_a_host_selector_or_a_device() -> None:
    inventory = parse_inventory(INVENTORY, path=Path("inventory.toml"))
    assert hosts_and_devices(inventory, "") == ((), ())
    assert hosts_and_devices(inventory, "gpu01/cuda:1, rack=b") == (("gpu02", "gpu03"), ("gpu01/cuda:1",))
    with pytest.raises(FleetError, match="no host `gpu09`") as refused:
        hosts_and_devices(inventory, "gpu09/cuda:1")
    assert "gpu0" in refused.value.detail.hint


def test_hosts_are_left_out_with_their_reason() -> None:
    inventory = parse_inventory(INVENTORY, path=Path("inventory.toml"))
    chosen, absent = chosen_hosts(PlanAsk(model="m", hosts="rack=b", exclude="gpu03"), inventory)
    assert chosen == ["gpu02"]
    assert absent == {"gpu01": "not selected by --hosts rack=b", "gpu03": "excluded"}


def test_the_words_are_the_options_of_the_verb_with_their_defaults() -> None:
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    spelt = {name.replace("_", "-") for name in options}
    of_the_verb = {"output", "explain", "pareto", "check", "as-json"}
    assert set(ask_words()) == spelt - of_the_verb
    defaults = inspect.signature(PlanAsk).parameters
    for name, option in options.items():
        if name in defaults and not option.multiple:
            assert option.get_default(click.Context(command)) == defaults[name].default, name


def test_words_are_read_as_their_fields_take_them() -> None:
    asked = parse_ask(
        "m", "objective=throughput hosts=rack=b max-ttft=0.5 exact controller=gpu01,gpu02 replicas=max"
    )
    assert asked == PlanAsk(
        model="m",
        objective="throughput",
        hosts="rack=b",
        max_ttft=0.5,
        exact=True,
        controller=("gpu01", "gpu02"),
        replicas="max",
    )
    assert parse_ask("m", "--context=4096") == PlanAsk(model="m", context=4096)
    assert parse_ask("m", "") == PlanAsk(model="m")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("contxt=5", "`contxt=5` says nothing of a plan \\(did you mean `context`"),
        ("context=4k", "`context=4k`: Expected `int`"),
        ("batch=0", "`batch=0`: Expected `int` >= 1"),
        ("objective=speed", "`objective=speed`: Invalid enum value 'speed'"),
        ("strategy=magic", "the strategies are adaptive, pipeline, tensor, hybrid"),
        ("replicas=0", "neither a number above 0 nor max"),
        ("tensor=two", "not a list of numbers"),
        ("reserve=gpu01", "is not HOST/DEVICE=GB"),
        ("quantisation", "`quantisation`: Invalid enum value 'true'"),
    ],
)
def test_a_word_that_means_nothing_is_named(words: str, said: str) -> None:
    with pytest.raises(FleetError, match=said) as refused:
        parse_ask("m", f"batch=4 {words}" if not words.startswith("batch") else words)
    assert refused.value.code == "E113"
