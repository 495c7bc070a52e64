"""Loading weights: a packed shard from the cache, against reading the same tensors out of safetensors.

`python -m tests.benchmarks.load_shard MODEL_DIR`; see `commanded`. Commands: `cached` and `plain`, seconds until
every byte of the weights is in this process' map or memory. The files are in the page cache.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import safe_open

from agent.engine.shard_cache import ShardCache
from agent.engine.weights import ShardWeights, load_weights
from agent.models.spec import read_spec
from tests.agent.engine.models import stage
from tests.benchmarks.commanded import obey


class Loads:
    def __init__(self, model_dir: Path, folder: Path) -> None:
        torch.set_num_threads(1)
        self._model_dir = model_dir
        # Shards are kept under the digest of their model; any will do for one of our own.
        self._spec = msgspec.structs.replace(read_spec(model_dir), digest="0" * 64)
        self._extent = stage(self._spec, (0, self._spec.num_layers))[0]
        self._cache = ShardCache(folder)
        self._load()  # makes the entry

    def cached(self) -> float:
        gc.collect()
        begun = time.perf_counter()
        weights = self._load()
        touched = _touch_mapped()
        elapsed_s = time.perf_counter() - begun
        assert touched > 0.9 * weights.num_bytes, f"{touched} bytes are mapped of {weights.num_bytes}"
        return elapsed_s

    def plain(self) -> float:
        """A mapped tensor is not loaded yet: each is copied out, as a loader does that changes or moves it."""
        gc.collect()
        begun = time.perf_counter()
        held = []
        for path in sorted(self._model_dir.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                held += [file.get_tensor(name).clone() for name in file.keys()]  # noqa: SIM118 - it is no dict
        elapsed_s = time.perf_counter() - begun
        assert held
        return elapsed_s

    def _load(self) -> ShardWeights:
        with torch.inference_mode():
            return load_weights(
                self._spec,
                self._extent,
                shard_file="",
                model_dir=str(self._model_dir),
                kind=torch.bfloat16,
                device=torch.device("cpu"),
                on_read=lambda _count: None,
                cache=self._cache,
            )


def _touch_mapped() -> int:
    """Read one byte of each page of the packed files in this process' map, and say how many bytes they are."""
    num_bytes = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if not line.endswith(".packed"):
            continue
        begin, end = (int(place, 16) for place in line.split()[0].split("-"))
        mapped = (ctypes.c_ubyte * (end - begin)).from_address(begin)
        np.frombuffer(memoryview(mapped), np.uint8)[:: mmap.PAGESIZE].sum()
        num_bytes += end - begin
    return num_bytes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="odb-shards-", dir=Path(sys.argv[1]).parent) as directory:
        loads = Loads(Path(sys.argv[1]), Path(directory))
        obey({"cached": loads.cached, "plain": loads.plain})
