"""TLS between agents: 1.3 only, both sides show a leaf of the cluster's CA, leaves are replaced while we run."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable
from pathlib import Path

from agent.errors import FleetError
from agent.wire.rank import TlsFiles

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 5.0


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Raises FleetError E208 when a file is missing or unusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # Session tickets would let a peer come back without showing its certificate anew.
    context.num_tickets = 0
    return _load(context, files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Checks the server's DNS name. Raises FleetError E208 when a file is missing or unusable."""
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


async def watch_leaf(
    contexts: Iterable[ssl.SSLContext], files: TlsFiles, *, interval_s: float = CHECK_INTERVAL_S
) -> None:
    """Load a renewed leaf, and CAs added, into live contexts: running connections go on, new ones use it.

    Runs until cancelled. A CA that was removed needs a restart: OpenSSL only adds.
    """
    contexts = list(contexts)
    loaded = _stamp(files)
    while True:
        await asyncio.sleep(interval_s)
        stamp = _stamp(files)
        if stamp == loaded:
            continue
        try:
            # On a context of its own first: a half-written pair must not break the live ones.
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)
            for context in contexts:
                _load(context, files)
        except FleetError as error:
            log.warning("leaf not reloaded", extra={"reason": error.message})
            continue
        loaded = stamp
        log.info("leaf reloaded", extra={"cert": files.cert})


def _load(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(files.ca)
        context.load_cert_chain(files.cert, files.key)
    except (OSError, ssl.SSLError) as error:
        raise FleetError(
            "E208",
            f"certificate files {files.ca}, {files.cert}, {files.key} cannot be used: {error}",
            hint="bootstrap this host again to give it a certificate",
        ) from error
    return context


def _stamp(files: TlsFiles) -> tuple[tuple[int, int] | None, ...]:
    return tuple(_stamp_of(Path(name)) for name in (files.ca, files.cert, files.key))


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
