"""`odctl models` as its user types it: on local directories, and on real agents of a lab."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import FleetError
from agent.models.config import spec_of_config
from agent.models.safetensors_index import read_header
from agent.wire.agent import ModelHolding
from odctl.commands.bootstrap import bootstrap
from odctl.commands.models import ModelReport, model_list_result, report_prose
from odctl.lab import Lab
from odctl.result import ExitCode

QUICK = ["--layers", "2", "--hidden", "64", "--vocab", "1024", "--steps", "3"]


def _odctl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "odctl", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def _data(result: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(result.stdout)["data"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    made = _odctl("models", "make-demo", path, *QUICK)
    assert made.returncode == 0, made.stderr
    assert "● small  LlamaForCausalLM" in made.stdout
    assert made.stderr == "", "without a terminal there is no progress to show"
    return path


def test_check_tells_what_a_model_is(demo: Path) -> None:
    prose = _odctl("models", "check", demo)
    assert prose.returncode == 0
    assert "2 layers, hidden 64" in prose.stdout
    report = _data(_odctl("models", "check", demo, "--json"))
    assert report["size_bytes"] == sum(file.stat().st_size for file in demo.iterdir())
    assert (report["num_files"], report["problem"], report["remarks"]) == (5, None, [])
    assert report["spec"]["num_layers"] == 2
    assert report["digest"] == ""


def test_check_tells_what_is_wrong_and_exits_1(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((demo / "config.json").read_bytes())
    weights = (demo / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1])
    broken = _odctl("models", "check", tmp_path)
    assert broken.returncode == ExitCode.ERROR
    assert f"E704: {tmp_path}/model.safetensors is cut off" in broken.stdout
    assert f"{len(weights)} bytes, the file has {len(weights) - 1}" in broken.stdout
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    remarks = _data(_odctl("models", "check", tmp_path, "--json"))["remarks"]
    assert any("pytorch_model.bin" in remark for remark in remarks)
    assert any("no tokenizer.json" in remark for remark in remarks)


def test_make_demo_does_not_overwrite(demo: Path) -> None:
    again = _odctl("models", "make-demo", demo, *QUICK)
    assert again.returncode == ExitCode.BAD_FILE
    assert "is not empty" in again.stderr


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Two hosts, of which only h1 has an agent."""
    monkeypatch.setenv("ODCTL_HOME", str(tmp_path))
    with Lab(name=f"m{secrets.token_hex(3)}", num_hosts=2, kind="local") as lab:
        result = bootstrap(str(lab.inventory_path), "h1")
        assert result.exit_code is ExitCode.OK, result.prose
        yield lab


def test_a_pushed_model_is_listed_and_a_cut_push_goes_on(demo: Path, lab: Lab) -> None:
    inventory = ("-i", lab.inventory_path)
    digest = _data(_odctl("models", "check", demo, "--hash", "--json"))["digest"]
    first = _odctl(*inventory, "models", "push", demo, "h1", "--json")
    assert first.returncode == 0, first.stderr
    total = sum(file.stat().st_size for file in demo.iterdir())
    assert _data(first)["sent_bytes"] == total

    listed = _odctl(*inventory, "models", "--json")
    assert listed.returncode == ExitCode.PARTIAL
    (held,) = _data(listed)["models"]
    assert (held["host"], held["name"], held["digest"], held["is_complete"]) == ("h1", "small", digest, True)
    assert list(_data(listed)["unreachable"]) == ["h2"]
    prose = _odctl(*inventory, "models").stdout
    assert f"h1    small  {digest[:12]}" in prose
    assert "✗ h2 unreachable" in prose

    weights = Path(held["path"]) / "model.safetensors"
    half = weights.stat().st_size // 2
    os.truncate(weights, half)
    weights.rename(weights.with_name("model.safetensors.part"))
    (held,) = _data(_odctl(*inventory, "models", "--json"))["models"]
    assert not held["is_complete"]
    second = _odctl(*inventory, "models", "push", demo, "h1", "--json")
    assert _data(second)["sent_bytes"] == (demo / "model.safetensors").stat().st_size - half
    assert weights.read_bytes() == (demo / "model.safetensors").read_bytes()
    assert read_header(weights)
    assert _data(_odctl(*inventory, "models", "push", demo, "h1", "--json"))["sent_bytes"] == 0


def test_a_fleet_that_gives_no_answer_at_all_is_exit_4() -> None:
    silent = FleetError("E201", "connection refused")
    result = model_list_result({"h1": silent, "h2": silent})
    assert result.exit_code is ExitCode.UNREACHABLE
    assert "✗ h2 unreachable: connection refused" in result.prose


def test_broken_and_partial_models_are_told_apart() -> None:
    def holding(name: str, **more: Any) -> ModelHolding:
        values = {
            "digest": "",
            "family": "llama",
            "num_parameters": 1,
            "size_bytes": 4 << 30,
            "held_bytes": 1 << 20,
        }
        return ModelHolding(host="h1", name=name, path=f"/m/{name}", is_complete=False, **{**values, **more})

    result = model_list_result({"h1": (holding("part"), holding("bad", trouble="config.json: no"))})
    part, bad = result.prose.splitlines()[1:3]
    assert part.split() == ["h1", "part", "-", "4.0", "GiB", "-", "1.0", "MiB", "/m/part"]
    assert "broken" in bad
    assert "✗ h1: /m/bad: config.json: no" in result.prose
    assert result.exit_code is ExitCode.OK


def test_experts_and_windows_are_told_with_the_layers_that_have_them(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 512,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "mlp_only_layers": [0]}
    said: dict[str, tuple[dict[str, Any], str]] = {
        "Qwen3MoeForCausalLM": (experts, "4 experts of 40, 2 for each token (MLP 96 in 1 of 4 layers)"),
        "Gemma3ForCausalLM": (
            {"sliding_window": 64, "sliding_window_pattern": 2},
            "sliding window 64 in 2 of 4 layers (theta 10000)",
        ),
        "Gemma2ForCausalLM": ({"sliding_window": 64}, "sliding window 64 in 2 of 4 layers"),
        "MistralForCausalLM": ({"sliding_window": 64}, "sliding window 64"),
    }
    for architecture, (keys, words) in said.items():
        config = {"architectures": [architecture], **sizes, **keys}
        report = ModelReport(
            path=str(tmp_path),
            spec=spec_of_config(config, where="config.json", name="m"),
            size_bytes=1,
            num_files=1,
            digest="",
            problem=None,
            quantisation="",
            remarks=(),
        )
        assert words in report_prose(report)


def test_a_host_measures_what_quantisation_costs(demo: Path, lab: Lab) -> None:
    inventory = ("-i", lab.inventory_path)
    assert _odctl(*inventory, "models", "push", demo, "h1").returncode == 0
    measured = _odctl(*inventory, "models", "check", "small", "--quantisation", "int8,int4", "--json")
    assert measured.returncode == 0, measured.stderr
    plain, int8, int4 = _data(measured)["precisions"]
    assert (plain["quantisation"], plain["mean_kl"]) == ("none", 0.0)
    assert plain["weight_bytes"] > int8["weight_bytes"] > int4["weight_bytes"]
    assert 0.5 < int8["top1_agreement"] <= 1

    unknown = _odctl(*inventory, "models", "check", "large", "--quantisation", "int8", "--host", "h1")
    assert "E701" in unknown.stderr
    assert "small on h1" in unknown.stderr
    nonsense = _odctl(*inventory, "models", "check", "small", "--quantisation", "int7")
    assert nonsense.returncode == ExitCode.BAD_FILE
