from __future__ import annotations

import hashlib
import re

import msgspec
import pytest

from agent.documents import DocumentError
from agent.planner.file import is_edited, plan_from_toml, plan_hash, plan_to_toml
from agent.planner.plan import Objective, Plan
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_70B, MIXED_GPUS, THREE_CPUS, drafting, plan_for

PLANS = {
    "one device": lambda: plan_for(LLAMA_1B, THREE_CPUS),
    "pipeline": lambda: plan_for(LLAMA_1B, THREE_CPUS, stages=3),
    "mixed sizes": lambda: plan_for(LLAMA_1B, THREE_CPUS, tensor_parallel_sizes=(1, 2)),
    "replicas": lambda: plan_for(LLAMA_1B, THREE_CPUS, replicas=2),
    "draft": lambda: plan_for(LLAMA_1B, THREE_CPUS, stages=3, **drafting()),
    "70b": lambda: plan_for(LLAMA_70B, MIXED_GPUS, objective=Objective(kind="throughput")),
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_for(LLAMA_1B, THREE_CPUS, tensor_parallel_sizes=(1, 2))


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_comes_back_from_its_file_to_the_byte(name: str) -> None:
    made = PLANS[name]()
    text = plan_to_toml(made)
    read = plan_from_toml(text, file="plan.toml")
    assert read == made
    assert plan_to_toml(read) == text
    assert plan_hash(read) == plan_hash(made)
    assert not is_edited(text, read)


def test_strings_that_need_escapes_survive() -> None:
    odd = msgspec.structs.replace(
        plan_for(LLAMA_1B, THREE_CPUS), name='a"b\\c', why=("tab\tnew\nline", "del\x7f nul\x01 é 漢 🙂")
    )
    assert plan_from_toml(plan_to_toml(odd), file="plan.toml") == odd


def test_a_hand_edited_file_is_read_and_told(plan: Plan) -> None:
    text = plan_to_toml(plan).replace("queue = 512", "queue = 64")
    read = plan_from_toml(text, file="plan.toml")
    assert read.serving.queue == 64
    assert is_edited(text, read)
    assert plan_hash(read) != plan_hash(plan)
    commented = plan_to_toml(plan).replace("[serving]", "# a remark\n[serving]")
    assert not is_edited(commented, plan_from_toml(commented, file="plan.toml")), "a remark changes nothing"


def test_the_hash_covers_every_field(plan: Plan) -> None:
    changed = [
        msgspec.structs.replace(plan, name="other"),
        msgspec.structs.replace(plan, controllers=("b",)),
        msgspec.structs.replace(plan, serving=msgspec.structs.replace(plan.serving, batch=7)),
        msgspec.structs.replace(plan, why=("another reason",)),
    ]
    assert len({plan_hash(each) for each in [plan, *changed]}) == 5


def test_a_draft_model_follows_the_model_and_is_part_of_the_hash(plan: Plan) -> None:
    drafted = plan_for(LLAMA_1B, THREE_CPUS, **drafting())
    text = plan_to_toml(drafted)
    assert text.index("[model]") < text.index("[draft]") < text.index("[objective]")
    assert "[draft]" not in plan_to_toml(plan)
    assert drafted.draft is not None
    other = msgspec.structs.replace(drafted.draft, digest="other")
    assert plan_hash(msgspec.structs.replace(drafted, draft=other)) != plan_hash(drafted)


def test_a_plan_without_a_draft_model_learning_or_constraints_keeps_its_hash() -> None:
    """What runs since before there were any is the same plan."""
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    as_before = msgspec.json.encode(plan, order="deterministic")
    for nothing in (b'"draft":null,', b'"learning":null,', b'"asked":null,'):
        as_before = as_before.replace(nothing, b"")
    assert plan_hash(plan) == hashlib.sha256(as_before).hexdigest()


def test_a_draft_model_and_its_speculation_need_each_other(plan: Plan) -> None:
    text = plan_to_toml(plan).replace('speculation = "none"', 'speculation = "draft_model"')
    with pytest.raises(DocumentError) as refused:
        plan_from_toml(text, file="plan.toml")
    (problem,) = refused.value.problems
    assert (problem.code, problem.path) == ("E107", "serving.speculation")
    assert text.split("\n")[problem.span.line - 1].startswith("speculation = ")
    text = plan_to_toml(plan_for(LLAMA_1B, THREE_CPUS, **drafting()))
    with pytest.raises(DocumentError) as refused:
        plan_from_toml(text.replace('speculation = "draft_model"', 'speculation = "none"'), file="plan.toml")
    (problem,) = refused.value.problems
    assert (problem.code, problem.path) == ("E107", "draft")
    assert "`llama-tiny`" in problem.message
    with pytest.raises(DocumentError, match="predicted_cost"):
        plan_from_toml(text.replace("predicted_cost = ", "predicted_cost = -"), file="plan.toml")


def test_optional_tables_may_be_left_out(plan: Plan) -> None:
    text = plan_to_toml(plan)
    without = re.sub(r"\n\[healing\].*?\n\n", "\n", text, flags=re.DOTALL)
    assert "[healing]" not in without
    assert plan_from_toml(without, file="plan.toml") == plan


def test_all_mistakes_of_a_file_are_reported_at_once_at_their_places(plan: Plan) -> None:
    lines = plan_to_toml(plan).split("\n")

    def change(before: str, after: str, *, nth: int = 0) -> tuple[int, int]:
        """Replace in the nth line that has `before`; line and column, from 1, of the new text's first word."""
        index = [i for i, line in enumerate(lines) if before in line][nth]
        lines[index] = lines[index].replace(before, after)
        return index + 1, lines[index].index(after) + 1

    expected = {
        "E104": change("batch = 8", "bacth = 8"),
        "E105": change("context = 2048", 'context = "2048"'),
        "E106": change('kind = "latency"', 'kind = "latancy"'),
        "E107": change("kv_heads = [0, 8]", "kv_heads = [8, 8]"),
    }
    with pytest.raises(DocumentError) as refused:
        plan_from_toml("\n".join(lines), file="plan.toml")
    problems = {problem.code: problem for problem in refused.value.problems}
    assert set(problems) == set(expected)
    for code, (line, column) in expected.items():
        assert problems[code].span.line == line, code
        # A key is marked where it stands; a value, behind its key and the equals sign.
        shift = 0 if code == "E104" else lines[line - 1].index("= ") + 2 - (column - 1)
        assert problems[code].span.column == column + shift, code
    assert problems["E104"].hint == "did you mean `batch`?"
    assert problems["E106"].hint == "did you mean `latency`?"
    assert problems["E107"].path == "replica[0].stage[0].shard[0].kv_heads"
    assert refused.value.message.count("error[E10") == 4
    assert f" --> plan.toml:{expected['E104'][0]}:{expected['E104'][1]}   serving.bacth" in refused.value.message


@pytest.mark.parametrize(
    ("before", "after", "code", "part"),
    [
        ("version = 1", "version = 2", "E106", "plan version 2"),
        ("batch = 8", "batch = 0", "E106", "batch"),
        ('controllers = ["a", "b", "c"]', "controllers = []", "E106", "controllers"),
        ('host = "c"', 'host = "b"', "E107", "device `b/cpu` holds two shards"),
        ("name = ", "nme = ", "E103", "missing key `name`"),
        ("layers = [0, ", "layers = [0, 1, ", "E106", "layers"),
        ("weights = ", "weights = -", "E106", "weights"),
        ("[serving]", "[serving", "E102", ""),
        ("[serving]", "[surving]", "E104", "unknown key `surving`"),
    ],
)
def test_each_mistake_has_its_code(plan: Plan, before: str, after: str, code: str, part: str) -> None:
    text = plan_to_toml(plan)
    assert before in text
    with pytest.raises(DocumentError) as refused:
        plan_from_toml(text.replace(before, after, 1), file="plan.toml")
    assert code in {problem.code for problem in refused.value.problems}
    assert part in refused.value.message


BOUNDS = re.compile(r"^(\w+_bounds(_s)?|num_measured_runs|joules_per_token|peak_bytes) = .*\n", re.MULTILINE)


def test_a_plan_of_an_earlier_release_is_read_and_keeps_its_hash(plan: Plan) -> None:
    text = BOUNDS.sub("", plan_to_toml(plan))
    assert "bounds" not in text
    old = plan_from_toml(text, file="plan.toml")
    assert old.predicted.time_per_token.low == old.predicted.time_per_token.high == plan.predicted.time_per_token_s
    assert not {"bounds", "joules", "peak"} & set(re.findall("[a-z]+", msgspec.json.encode(old).decode()))
    assert plan_hash(plan_from_toml(plan_to_toml(old), file="plan.toml")) == plan_hash(old) != plan_hash(plan)


def test_energy_and_memory_are_told_with_their_bounds(plan: Plan) -> None:
    read = plan_from_toml(plan_to_toml(plan), file="plan.toml").predicted
    assert read == plan.predicted
    for interval in (read.energy, read.memory_peak):
        assert interval is not None
        assert interval.low < interval.expected < interval.high
    for field in ("joules_per_token", "peak_bytes"):
        text = re.sub(f"{field} = .*", f"{field} = [5, 4, 6]", plan_to_toml(plan))
        with pytest.raises(DocumentError, match=field):
            plan_from_toml(text, file="plan.toml")


@pytest.mark.parametrize("bounds", ["[1.0]", "[1e3, 2e3]", "[1e-9, 1e-8]", "[1e3, 1e-9]", "[1e-9, 1.0, 2.0]"])
def test_bounds_that_do_not_hold_the_expected_are_refused(plan: Plan, bounds: str) -> None:
    text = re.sub(r"ttft_bounds_s = .*", f"ttft_bounds_s = {bounds}", plan_to_toml(plan))
    with pytest.raises(DocumentError, match="ttft_bounds_s") as raised:
        plan_from_toml(text, file="plan.toml")
    assert [problem.code for problem in raised.value.problems] == ["E107"]
