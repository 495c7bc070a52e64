"""A wrong document names all of its problems, each at its place, and a right one becomes its type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import msgspec
import pytest

from agent.documents import CONTRADICTION, Document, DocumentError, Problem, convert, parse_document
from agent.errors import FleetError

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    layers: tuple[int, int]
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.layers[0] >= self.layers[1]:
            raise ValueError(f"stage holds no layers: {list(self.layers)}")


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "deployment"
    model: str
    replicas: Annotated[int, msgspec.Meta(ge=1)] = 1
    strategy: Literal["pipeline", "tensor"] = "pipeline"
    port: Port = 1
    fraction: float = 0.5
    stage: tuple[Stage, ...] = ()
    key: str | None = None


class File(msgspec.Struct, frozen=True, kw_only=True):
    deployment: dict[str, Deployment] = {}
    version: Literal[1] = 1


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(DocumentError) as caught:
        convert(parse_document(text, file="plan.toml"), File)
    return caught.value.problems


def test_a_right_document_becomes_its_type() -> None:
    text = '[deployment.chat]\nmodel = "m"\nfraction = 1\n[[deployment.chat.stage]]\nlayers = [0, 4]\n'
    value = convert(parse_document(text, file="plan.toml"), File)
    stage = Stage(layers=(0, 4))
    assert value == File(deployment={"chat": Deployment(model="m", fraction=1.0, stage=(stage,))})


def test_an_unknown_key_looks_like_the_design_says() -> None:
    text = 'version = 1\n[deployment.chat]\nmodel = "m"\nreplica = 2\n'
    with pytest.raises(FleetError) as caught:
        convert(parse_document(text, file="plan.toml"), File)
    assert caught.value.code == "E104"
    assert caught.value.message == (
        "error[E104]: unknown key `replica`\n"
        " --> plan.toml:4:1   deployment.chat.replica\n"
        "  |\n"
        "4 | replica = 2\n"
        "  | ^^^^^^^ not a deployment setting\n"
        "  = did you mean `replicas`?"
    )


def test_all_problems_are_told_at_once_in_the_order_of_the_text() -> None:
    text = """version = 2
[deployment.chat]
replicas = 0
strategy = "tensr"
port = "22"
fraction = true
[[deployment.chat.stage]]
layers = [4, 4]
[[deployment.chat.stage]]
layers = [0, "8"]
hosts = "gpu01"
[[deployment.chat.stage]]
layers = [0, 8, 9]
[deployment.code]
modle = "m"
"""
    found = [(problem.code, problem.span.line, problem.path) for problem in problems_of(text)]
    assert found == [
        ("E106", 1, "version"),
        ("E103", 2, "deployment.chat.model"),
        ("E106", 3, "deployment.chat.replicas"),
        ("E106", 4, "deployment.chat.strategy"),
        ("E105", 5, "deployment.chat.port"),
        ("E105", 6, "deployment.chat.fraction"),
        ("E106", 7, "deployment.chat.stage[0]"),
        ("E105", 10, "deployment.chat.stage[1].layers[1]"),
        ("E105", 11, "deployment.chat.stage[1].hosts"),
        ("E106", 13, "deployment.chat.stage[2].layers"),
        ("E103", 14, "deployment.code.model"),
        ("E104", 15, "deployment.code.modle"),
    ]


def test_messages_name_the_value_and_what_is_allowed() -> None:
    text = '[deployment.chat]\nmodel = 3\nport = 70000\nstrategy = "tensr"\nkey = 7\n'
    by_path = {problem.path.rpartition(".")[2]: problem for problem in problems_of(text)}
    assert by_path["model"].message == "`model` is the integer 3, but must be a string"
    assert by_path["port"].message == "`port` is 70000, but must be an integer from 1 to 65535"
    assert by_path["strategy"].message == (
        '`strategy` is the string "tensr", but must be one of "pipeline", "tensor"'
    )
    assert by_path["strategy"].hint == "did you mean `tensor`?"
    assert by_path["key"].message == "`key` is the integer 7, but must be a string"


def test_a_syntax_error_is_one_problem_with_line_and_column() -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document("a = 1\nb = = 2\n", file="inventory.toml")
    (problem,) = caught.value.problems
    assert (problem.code, problem.span.line, problem.span.column) == ("E102", 2, 5)
    assert " --> inventory.toml:2:5" in caught.value.message


@pytest.mark.parametrize("text", ["a = [1,\n", 'a = "open', "[table\n", "a = 1\na = 2\n", "x = " + "[" * 5000])
def test_any_broken_text_is_a_document_error(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document(text, file="x.toml")
    assert caught.value.code == "E102"


def _no_two_on_one_port(document: Document, value: File) -> Iterable[Problem]:
    seen: dict[int, str] = {}
    for name, deployment in value.deployment.items():
        if (other := seen.setdefault(deployment.port, name)) != name:
            place = ("deployment", name, "port")
            yield document.problem(CONTRADICTION, f"port {deployment.port} is also `{other}`'s", place)


def test_extra_checks_are_told_together_with_the_rest() -> None:
    text = """
[deployment.a]
model = "m"
port = 5
[deployment.b]
model = "m"
port = 5
[deployment.c]
model = "m"
prot = 7
"""
    with pytest.raises(DocumentError) as caught:
        convert(parse_document(text, file="x.toml"), File, extra_checks=[_no_two_on_one_port])
    assert [(problem.code, problem.span.line) for problem in caught.value.problems] == [("E107", 7), ("E104", 10)]


def test_a_consequence_of_a_wrong_table_is_not_told() -> None:
    text = '[deployment.a]\nmodel = "m"\n[deployment.b]\nmodel = "m"\nport = "5"\n'
    with pytest.raises(DocumentError) as caught:
        convert(parse_document(text, file="x.toml"), File, extra_checks=[_no_two_on_one_port])
    assert [problem.code for problem in caught.value.problems] == ["E105"]


def test_tabs_keep_the_caret_under_its_word() -> None:
    (problem,) = problems_of('[deployment.a]\nmodel = "m"\n\t\tprot = 1\n')
    caret_line = problem.render().splitlines()[4]
    assert caret_line.startswith("  | \t\t^^^^ ")
