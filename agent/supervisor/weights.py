"""Where this host's weights are, and how missing ones get here: from the model's directory, or from other hosts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from agent.api.cluster_client import ClusterClient
from agent.errors import FleetError
from agent.facts.model import ModelSpec
from agent.models.fetch import fetch_shard, fetch_small_files, shard_path
from agent.models.files import has_small_files
from agent.models.holdings import find_model, list_holdings
from agent.models.manifest import load_manifest, read_manifest
from agent.models.ollama_store import known_stores
from agent.models.ranges import hash_ranges, read_ranges
from agent.models.sources import RangeAnswer, RangeSource
from agent.models.upload import receive_upload
from agent.planner.plan import ModelRef
from agent.planner.shards import ShardExtent
from agent.supervisor.paths import HostPaths
from agent.supervisor.ranks import HeldShard
from agent.wire.agent import (
    AgentConfig,
    FetchShards,
    HostAddress,
    ModelHolding,
    ModelManifest,
    ModelQuery,
    RangeRequest,
    UploadReply,
)

log = logging.getLogger(__name__)

MANIFEST_TIMEOUT_S = 1800.0
"""The first question makes the holder hash the whole model."""


class AgentSource:
    """Another agent that may hold the model."""

    def __init__(self, client: ClusterClient, address: HostAddress) -> None:
        self._client = client
        self._address = address

    @property
    def name(self) -> str:
        return self._address.host

    @asynccontextmanager
    async def read(self, request: RangeRequest) -> AsyncIterator[RangeAnswer]:
        async with self._client.ranges(self._address, request) as (sha256, chunks):
            yield RangeAnswer(sha256, chunks)


class WeightStore:
    """Models and shards on this host. Blocking work (hashing, listing) runs in threads."""

    def __init__(self, config: AgentConfig, paths: HostPaths, client: ClusterClient) -> None:
        self._config = config
        self._paths = paths
        self._client = client
        self._search_dirs = (paths.models, *(Path(path) for path in config.model_dirs), *known_stores())
        self._cache_dir = paths.models

    async def holdings(self) -> tuple[ModelHolding, ...]:
        return await asyncio.to_thread(
            list_holdings, self._search_dirs, host=self._config.host, cache_dir=self._cache_dir
        )

    async def manifest(self, query: ModelQuery) -> ModelManifest:
        """Of a model that is complete here. Raises E701 when it is not."""
        path = await self.directory(query)
        return await asyncio.to_thread(read_manifest, path, cache_dir=self._cache_dir)

    async def directory(self, query: ModelQuery) -> Path:
        """Of a model that is complete here. Raises E701 when it is not."""
        path = await self._find(query.digest, query.path)
        if path is None:
            what = query.path or query.digest[:12]
            raise FleetError("E701", f"model {what} is not complete on this host", host=self._config.host)
        return path

    async def ranges(self, request: RangeRequest) -> tuple[str, AsyncIterator[bytes]]:
        """Hash and bytes. Raises E701 when the model is not complete here, E709 for a range outside of it."""
        path = await self._find(request.digest, "")
        if path is None:
            raise FleetError("E701", f"model {request.digest[:12]} is not complete here", host=self._config.host)
        sha256 = await asyncio.to_thread(hash_ranges, path, request.ranges)
        return sha256, _read_in_thread(path, request)

    async def upload(self, digest: str, file: str, offset: int, chunks: AsyncIterator[bytes]) -> UploadReply:
        return await receive_upload(self._paths.models / digest, digest, file, offset, chunks)

    async def fetch(self, order: FetchShards) -> int:
        """Have everything on disk that these extents need. Returns the bytes that came over the network."""
        digest = order.model.digest
        if await self._find_own(order.model) is not None:
            return 0
        sources = [AgentSource(self._client, address) for address in order.sources]
        target = self._paths.models / digest
        fetched = 0
        if load_manifest(target) is None or not has_small_files(target):
            manifest = await self._fetch_manifest(order)
            fetched += await fetch_small_files(manifest, target_dir=target, sources=_as_sources(sources))
        for extent in order.extents.values():
            fetched += await fetch_shard(
                order.spec, digest, extent, target_dir=target, sources=_as_sources(sources)
            )
        return fetched

    async def held(self, model: ModelRef, spec: ModelSpec, extents: dict[str, ShardExtent]) -> dict[str, HeldShard]:
        """Where each rank finds its weights. Raises E701 when they were not fetched."""
        whole = await self._find_own(model)
        if whole is not None:
            return dict.fromkeys(extents, HeldShard(model_dir=str(whole), shard_file=""))
        target = self._paths.models / model.digest
        held = {}
        for rank_id, extent in extents.items():
            path = shard_path(target, spec, extent)
            if not path.is_file():
                raise FleetError(
                    "E701", f"the shard of rank {rank_id} of {model.name} is not here", host=self._config.host
                )
            held[rank_id] = HeldShard(model_dir=str(target), shard_file=str(path))
        return held

    async def tokenizer_dir(self, model: ModelRef) -> Path:
        """Directory with the model's small files. Raises E701 when it is not here."""
        whole = await self._find_own(model)
        target = self._paths.models / model.digest
        if whole is None and not has_small_files(target):
            raise FleetError("E701", f"the tokenizer of {model.name} is not here", host=self._config.host)
        return whole or target

    async def _fetch_manifest(self, order: FetchShards) -> ModelManifest:
        query = ModelQuery(digest=order.model.digest, path=order.model.path)
        troubles = []
        for address in order.sources:
            try:
                manifest = await self._client.manifest(address, query, timeout_s=MANIFEST_TIMEOUT_S)
            except FleetError as error:
                troubles.append(f"{address.host}: {error.message}")
                continue
            if manifest.digest == order.model.digest:
                return manifest
            troubles.append(f"{address.host}: its model there has digest {manifest.digest[:12]}")
        raise FleetError(
            "E707",
            f"no host has model {order.model.name} ({order.model.digest[:12]}) whole: {'; '.join(troubles)}",
            hint="odctl models lists what is where; odctl models push brings one there",
            host=self._config.host,
        )

    async def _find_own(self, model: ModelRef) -> Path | None:
        """The whole model if this host has it. A plan's path counts on the host that the plan names for it: what
        lies there on another host is nobody's promise (declare shared directories as `model_dirs`).
        """
        path = model.path if model.source_host == self._config.host else ""
        return await self._find(model.digest, path)

    async def _find(self, digest: str, path: str) -> Path | None:
        """The model's own directory if it is here, hashed if need be; the path alone is only a hint."""

        def find() -> Path | None:
            if path:
                found = find_model(self._search_dirs, cache_dir=self._cache_dir, digest=digest, path=path)
                if found is not None:
                    return found
            return find_model(self._search_dirs, cache_dir=self._cache_dir, digest=digest)

        return await asyncio.to_thread(find)


def _as_sources(sources: Iterable[AgentSource]) -> list[RangeSource]:
    return list(sources)


async def _read_in_thread(path: Path, request: RangeRequest) -> AsyncIterator[bytes]:
    pieces = read_ranges(path, request.ranges)
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece
