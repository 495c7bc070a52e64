"""Bad input ends with the right exit code and one clear message that names place, value and way out; nothing is
half done. Driven as a user drives it: through `odctl` processes against a real lab.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from odctl.lab import Lab
from tests.agent.models.conftest import save_model

pytestmark = pytest.mark.ssh


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(name="badinput", num_hosts=1) as lab:
        assert all(outcome.error is None for outcome in lab.bootstrap())
        yield lab


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "good"
    save_model(path, "llama", dtype="bfloat16", shard_bytes=60_000)
    return path


def odctl(*arguments: str, inventory: Path | None = None, cwd: Path) -> subprocess.CompletedProcess[str]:
    chosen = ["-i", str(inventory)] if inventory else []
    return subprocess.run(
        [sys.executable, "-m", "odctl", *chosen, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def assert_one_message(done: subprocess.CompletedProcess[str], *, exit_code: int, says: tuple[str, ...]) -> None:
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in says:
        assert part in done.stderr, f"{part!r} is missing in: {done.stderr}"


def test_a_missing_inventory_says_how_to_get_one(tmp_path: Path) -> None:
    done = odctl("status", cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("inventory.toml", "odctl init"))


def test_all_problems_of_an_inventory_are_reported_at_once_with_their_places(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.toml"
    inventory.write_text(
        '[cluster]\nname = "x"\n\n[hosts.a]\nssh = "a"\nportt = 22\n\n[hosts.b]\nssh = "b"\nport = "many"\n'
    )
    done = odctl("bootstrap", inventory=inventory, cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("6:1", "portt", "did you mean `port`", "10:8", "many"))


def test_an_inventory_with_broken_syntax_names_the_line(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.toml"
    inventory.write_text('[cluster]\nname = "x\n')
    done = odctl("status", inventory=inventory, cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("inventory.toml:2",))


def test_a_missing_plan_says_how_to_get_one(lab: Lab, tmp_path: Path) -> None:
    done = odctl("apply", "none.toml", "--yes", inventory=lab.inventory_path, cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("none.toml", "odctl plan"))


def test_a_plan_with_an_unknown_key_names_it(lab: Lab, model: Path, tmp_path: Path) -> None:
    made = odctl("plan", str(model), "-o", "plan.toml", inventory=lab.inventory_path, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    plan = tmp_path / "plan.toml"
    plan.write_text(plan.read_text().replace("prefill_chunk", "prefil_chunk"))
    done = odctl("apply", "plan.toml", "--yes", inventory=lab.inventory_path, cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("prefil_chunk", "plan.toml:", "did you mean"))


def test_a_plan_whose_layers_leave_a_gap_is_refused_before_anything_starts(
    lab: Lab, model: Path, tmp_path: Path
) -> None:
    odctl("plan", str(model), "-o", "plan.toml", inventory=lab.inventory_path, cwd=tmp_path)
    plan = tmp_path / "plan.toml"
    plan.write_text(plan.read_text().replace("layers = [0, 3]", "layers = [1, 3]"))
    done = odctl("apply", "plan.toml", "--yes", inventory=lab.inventory_path, cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("layer",))
    status = odctl("status", "--json", inventory=lab.inventory_path, cwd=tmp_path)
    assert json.loads(status.stdout)["data"]["deployments"] == []


def test_a_plan_in_plaintext_needs_an_inventory_that_trusts_the_network(
    lab: Lab, model: Path, tmp_path: Path
) -> None:
    odctl("plan", str(model), "-o", "plan.toml", inventory=lab.inventory_path, cwd=tmp_path)
    plan = tmp_path / "plan.toml"
    asked, trusting = plan.read_text(), "trusted_network = true"
    assert "trusted_network = false" in asked
    plan.write_text(asked.replace("trusted_network = false", trusting))
    done = odctl("apply", "plan.toml", "--yes", inventory=lab.inventory_path, cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("E106", "plaintext", trusting))
    status = odctl("status", "--json", inventory=lab.inventory_path, cwd=tmp_path)
    assert json.loads(status.stdout)["data"]["deployments"] == []


def test_apply_without_a_terminal_needs_a_yes_and_does_not_hang(lab: Lab, model: Path, tmp_path: Path) -> None:
    odctl("plan", str(model), "-o", "plan.toml", inventory=lab.inventory_path, cwd=tmp_path)
    done = odctl("apply", "plan.toml", inventory=lab.inventory_path, cwd=tmp_path)
    assert_one_message(done, exit_code=3, says=("--yes",))


def test_what_does_not_fit_is_refused_with_numbers(lab: Lab, model: Path, tmp_path: Path) -> None:
    done = odctl(
        "plan", str(model), "--batch", "100000000", "-o", "plan.toml", inventory=lab.inventory_path, cwd=tmp_path
    )
    assert_one_message(done, exit_code=8, says=("h1/cpu", "short", "GB"))
    assert not (tmp_path / "plan.toml").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing_shard", ("model-0000",)),
        ("truncated", ("bytes",)),
        ("wrong_dtype", ("I16", "model.")),
        ("unknown_architecture", ("GPTBigFooForCausalLM", "LlamaForCausalLM")),
        ("no_config", ("config.json",)),
    ],
)
def test_a_wrong_model_directory_is_refused_and_no_plan_is_written(
    lab: Lab, model: Path, tmp_path: Path, damage: str, says: tuple[str, ...]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    _damage(broken, damage)
    done = odctl("plan", str(broken), "-o", "plan.toml", inventory=lab.inventory_path, cwd=tmp_path)
    assert_one_message(done, exit_code=1, says=says)
    assert not (tmp_path / "plan.toml").exists()


def test_an_unknown_model_lists_what_there_is(lab: Lab, tmp_path: Path) -> None:
    done = odctl("plan", "no-such-model", inventory=lab.inventory_path, cwd=tmp_path)
    assert_one_message(done, exit_code=1, says=("no-such-model", "models on the fleet"))


def test_an_unreachable_host_is_exit_4_and_named(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.toml"
    inventory.write_text('[cluster]\nname = "x"\n\n[hosts.gone]\nssh = "127.0.0.9"\nport = 1\n')
    done = odctl("bootstrap", inventory=inventory, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "gone" in done.stdout + done.stderr
    assert "refused" in done.stdout + done.stderr


def test_a_wrong_host_key_stops_before_anything_is_sent(tmp_path: Path) -> None:
    with Lab(name="wrongkey", num_hosts=1, kind="ssh") as lab:
        known_hosts = next(lab.directory.rglob("known_hosts"))
        kind, other_key = _new_public_key(tmp_path)
        address = known_hosts.read_text().split(" ", 1)[0]
        known_hosts.write_text(f"{address} {kind} {other_key}\n")
        done = odctl("bootstrap", inventory=lab.inventory_path, cwd=tmp_path)
        assert done.returncode == 4, done.stdout + done.stderr
        assert "CHANGED" in done.stdout + done.stderr or "changed" in done.stdout + done.stderr
        assert not Path(lab.hosts[0].prefix).exists()


def test_help_is_quick_to_import() -> None:
    # Time is a benchmark's business; what makes --help slow is what it imports.
    script = (
        "import sys; import odctl.cli; print(sorted({'torch','textual','asyncssh','numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _damage(path: Path, damage: str) -> None:
    shards = sorted(path.glob("model-*.safetensors"))
    config = path / "config.json"
    match damage:
        case "missing_shard":
            shards[0].unlink()
        case "truncated":
            shards[0].write_bytes(shards[0].read_bytes()[:-100])
        case "wrong_dtype":
            data = shards[0].read_bytes()
            shards[0].write_bytes(data.replace(b'"BF16"', b'"I16" ', 1))
        case "unknown_architecture":
            text = json.loads(config.read_text())
            config.write_text(json.dumps(text | {"architectures": ["GPTBigFooForCausalLM"]}))
        case "no_config":
            config.unlink()
        case _:
            raise AssertionError(damage)


def _new_public_key(directory: Path) -> tuple[str, str]:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "other")], check=True)
    kind, key, *_ = (directory / "other.pub").read_text().split()
    return kind, key
