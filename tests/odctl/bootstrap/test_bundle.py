"""Releases are named by what is in them, and requirements are read from one place."""

from __future__ import annotations

import gzip
import io
import tarfile
import tomllib
from pathlib import Path

import pytest

import agent
from agent.errors import FleetError
from odctl.bootstrap.bundle import Requirement, make_bundle, read_requirements


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as opened:
        found = {}
        for member in opened.getmembers():
            file = opened.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
        return found


def test_the_same_sources_make_the_same_release(tmp_path: Path) -> None:
    package = tmp_path / "agent"
    package.mkdir()
    (package / "__init__.py").write_text("A = 1\n")
    first = make_bundle(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"\0")
    (package / "__init__.py").touch()
    assert make_bundle(package) == first
    (package / "__init__.py").write_text("A = 2\n")
    assert make_bundle(package).release != first.release


def test_a_release_holds_the_agent_its_scripts_and_its_requirements() -> None:
    bundle = make_bundle()
    found = members(bundle.archive)
    root = Path(agent.__file__).parent
    for name in ("__init__.py", "tls_request.py", "keeper.sh", "launch.sh", "wire/agent.py"):
        assert found[f"agent/{name}"] == (root / name).read_bytes()
    assert found["requirements.txt"].decode().splitlines() == [str(each) for each in bundle.requirements]
    assert not any("odctl" in name or name.endswith(".pyc") for name in found)


def test_requirements_are_the_extra_of_pyproject() -> None:
    project = tomllib.loads((Path(agent.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["agent"]
    assert sorted(str(each) for each in read_requirements()) == sorted(wanted)


def test_requirements_without_a_source_tree_come_from_our_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["click>=8.1", 'torch==2.13.0; extra == "agent"', 'pytest<9,>=8.3; extra == "dev"']
    monkeypatch.setattr("odctl.bootstrap.bundle.agent.__file__", str(tmp_path / "agent" / "__init__.py"))
    monkeypatch.setattr("odctl.bootstrap.bundle.importlib.metadata.requires", lambda _: lines)
    assert [str(each) for each in read_requirements()] == ["torch==2.13.0"]


@pytest.mark.parametrize(
    ("condition", "installed", "is_met"),
    [
        (("==", "2.13.0"), "2.13.0+cpu", True),
        (("==", "2.13.0"), "2.13.1", False),
        ((">=", "0.19"), "0.19.0", True),
        ((">=", "0.19"), "0.18.6", False),
        ((">=", "12.560"), "13.0", True),
        (("<", "9"), "8.9.9", True),
        ((">=", "0.4.5"), "0.10.0rc1", True),
    ],
)
def test_versions_compare_by_their_numbers(condition: tuple[str, str], installed: str, is_met: bool) -> None:
    assert Requirement(name="x", conditions=(condition,)).accepts(installed) is is_met


def test_a_missing_package_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no agent package"):
        make_bundle(tmp_path)
