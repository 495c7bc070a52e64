"""Packed shards on disk, by the hash of all that they depend on: made by the first start, mapped by later ones.

A file that is mapped is locked, so that nobody clears it away; the others are cleared by age and by size.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from agent.engine.linear.choose import kernel_names
from agent.engine.packed_file import PackedFile, PackedFileError, PackedFileWriter
from agent.facts.model import ModelSpec, Quantisation
from agent.planner.shards import ShardExtent

log = logging.getLogger(__name__)

FORMAT = 2
"""Grows when the same shard would be packed otherwise."""
MAX_UNUSED_BYTES = 64 << 30
"""Of entries that no rank has mapped; the least recently used go first."""
MAX_UNUSED_S = 3600.0
"""After which another layout of the same model is taken to be over; a rollback comes sooner."""
MIN_FREE_BYTES = 2 << 30
"""Left on the disk. Where that cannot be, nothing is kept."""
_SUFFIX = ".packed"


def shard_key(spec: ModelSpec, extent: ShardExtent, *, kind: torch.dtype, quantisation: Quantisation) -> str:
    """Begins with the model's digest, so that its entries are found together."""
    depends_on = (
        FORMAT,
        spec.digest,
        msgspec.to_builtins(extent),
        str(kind),
        quantisation,
        str(torch.__version__),
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        _cpu_flags(),
        kernel_names(quantisation, kind),
    )
    return f"{spec.digest[:16]}-{hashlib.sha256(msgspec.json.encode(depends_on)).hexdigest()[:32]}"


class ShardCache:
    """The entries of one host's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, key: str) -> PackedFile | None:
        """The entry, mapped and locked, or None. A damaged one is removed, and the log says so."""
        path = self._path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            os.utime(fd)
            return PackedFile(fd, key=key)
        except PackedFileError as error:
            log.warning("packed shard is damaged and made anew", extra={"file": str(path), "why": str(error)})
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            log.warning("packed shard cannot be mapped", extra={"file": str(path), "why": str(error)})
            return None
        finally:
            os.close(fd)  # the mapping keeps the file, and its lock

    def make(self, key: str, *, num_bytes: int, write: Callable[[PackedFileWriter], None]) -> PackedFile | None:
        """Make room, have `write` fill a new entry, and map it; None, said in the log, where the disk refuses."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.clear(model=key.split("-", maxsplit=1)[0], needed_bytes=num_bytes)
            free_bytes = shutil.disk_usage(self._folder).free
            if free_bytes < num_bytes + MIN_FREE_BYTES:
                log.warning(
                    "packed shard is not kept",
                    extra={"why": "the disk is full", "needed_bytes": num_bytes, "free_bytes": free_bytes},
                )
                return None
            with PackedFileWriter(self._path(key), key=key) as writer:
                write(writer)
        except OSError as error:
            log.warning("packed shard is not kept", extra={"why": str(error)})
            return None
        return self.open(key)

    def clear(self, *, model: str, needed_bytes: int) -> None:
        """Remove what nobody has mapped: other layouts of this model after a while, the oldest until all fit."""
        now = time.time()
        kept: list[tuple[Path, int]] = []
        kept_bytes = 0
        for path, status in self._unlocked():
            is_over = path.name.startswith(f"{model}-") and now - status.st_mtime > MAX_UNUSED_S
            if is_over or path.suffix == ".part" or kept_bytes + status.st_size > MAX_UNUSED_BYTES:
                _remove(path, status.st_size)
            else:
                kept.append((path, status.st_size))
                kept_bytes += status.st_size
        while kept and shutil.disk_usage(self._folder).free < needed_bytes + MIN_FREE_BYTES:
            _remove(*kept.pop())

    def _unlocked(self) -> list[tuple[Path, os.stat_result]]:
        """Entries and remains that no rank has mapped or writes, the last used ones first."""
        found = []
        for path in (*self._folder.glob(f"*{_SUFFIX}"), *self._folder.glob(f".*{_SUFFIX}.*.part")):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append((path, os.fstat(fd)))
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
        return sorted(found, key=lambda entry: entry[1].st_mtime, reverse=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"


def _remove(path: Path, num_bytes: int) -> None:
    log.info("packed shard removed", extra={"file": str(path), "bytes": num_bytes})
    path.unlink(missing_ok=True)


def _cpu_flags() -> str:
    """What the CPU can do, as Linux lists it; kernels are chosen by it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return line.partition(":")[2].strip()
    return ""
