"""What a host is sent: the `agent` package and its requirements, as one archive whose hash names the release.

The archive is deterministic: the same sources give the same bytes, so a second bootstrap finds its release there.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

import agent
from agent.errors import FleetError

DISTRIBUTION = "odctl"
EXTRA = "agent"
_EXTRA_MARKER = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*((?:(?:>=|==|<=|<|>|!=)\s*[0-9][0-9A-Za-z.]*\s*,?\s*)*)")
_CONDITION = re.compile(r"(>=|==|<=|<|>|!=)\s*([0-9][0-9A-Za-z.]*)")


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """One line of requirements.txt: a distribution and the versions that will do."""

    name: str
    conditions: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name + ",".join(f"{operator}{version}" for operator, version in self.conditions)

    def accepts(self, installed: str) -> bool:
        """Whether an installed version will do. A local part (`2.13.0+cpu`) does not count."""
        have = _release_numbers(installed)
        return all(_holds(have, operator, _release_numbers(wanted)) for operator, wanted in self.conditions)


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A release in memory. `release` is 16 hex digits of the archive's hash; `archive` is gzipped tar."""

    release: str
    archive: bytes
    unpacked_bytes: int
    requirements: tuple[Requirement, ...]

    @property
    def venv(self) -> str:
        """Directory, below the prefix, of an environment that has exactly these requirements."""
        text = "\n".join(str(requirement) for requirement in self.requirements)
        return "venv-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def make_bundle(package: Path | None = None, *, requirements: tuple[Requirement, ...] | None = None) -> Bundle:
    """Pack a package tree called `agent` (default: the one that runs here) with its requirements.

    Raises FleetError E901 when the tree is not there.
    """
    root = package or Path(agent.__file__).parent
    if not (root / "__init__.py").is_file():
        raise FleetError("E901", f"there is no agent package in {root}", hint="install odctl anew")
    wanted = read_requirements() if requirements is None else requirements
    files = {f"agent/{path.relative_to(root).as_posix()}": path.read_bytes() for path in _files_of(root)}
    files["requirements.txt"] = "".join(f"{requirement}\n" for requirement in wanted).encode()
    archive = _pack(files)
    return Bundle(
        release=hashlib.sha256(archive).hexdigest()[:16],
        archive=gzip.compress(archive, compresslevel=6, mtime=0),
        unpacked_bytes=len(archive),
        requirements=wanted,
    )


def read_requirements() -> tuple[Requirement, ...]:
    """What a host's Python must have: the extra `agent`, from a source tree's pyproject.toml or our metadata."""
    source = Path(agent.__file__).parent.parent / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text())["project"]
        if project["name"] == DISTRIBUTION:
            return _parse(project["optional-dependencies"][EXTRA])
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    ours = [line.partition(";")[0] for line in lines if EXTRA in _EXTRA_MARKER.findall(line)]
    return _parse(ours)


def _parse(lines: list[str]) -> tuple[Requirement, ...]:
    requirements = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line.strip())
        assert match, f"cannot read requirement {line!r}"
        name, conditions = match.groups()
        requirements.append(Requirement(name=name, conditions=tuple(_CONDITION.findall(conditions))))
    return tuple(sorted(requirements, key=lambda requirement: requirement.name))


def _release_numbers(version: str) -> tuple[int, ...]:
    """(2, 13) of `2.13.0+cpu`: the numbers before any suffix, without trailing zeros."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = re.match(r"\d+", part)
        if not digits:
            break
        numbers.append(int(digits.group()))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _holds(have: tuple[int, ...], operator: str, wanted: tuple[int, ...]) -> bool:
    match operator:
        case "==":
            return have == wanted
        case "!=":
            return have != wanted
        case ">=":
            return have >= wanted
        case "<=":
            return have <= wanted
        case ">":
            return have > wanted
        case "<":
            return have < wanted
    raise AssertionError(f"unknown operator {operator}")


def _files_of(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc" and path.name[0] != ".":
            yield path


def _pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(files[name]))
    return buffer.getvalue()
