"""TLS 1.3 to and between ranks: both ends show a leaf of the cluster's CA, and between ranks it names their agents.

Links make contexts for each meeting, so that a rotated leaf is the one shown.
"""

from __future__ import annotations

import ssl
from typing import Any

from agent.errors import FleetError
from agent.wire.identity import agent_uri
from agent.wire.rank import TlsFiles


def server_context(tls: TlsFiles) -> ssl.SSLContext:
    """Raises FleetError E808 when a file is missing or unusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # a ticket would let the other end come back without its certificate, and is data that nobody reads here
    context.num_tickets = 0
    return _load(context, tls)


def client_context(tls: TlsFiles) -> ssl.SSLContext:
    """Raises FleetError E808 when a file is missing or unusable. The name is checked by `check_agent`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _load(context, tls)


def check_agent(connection: ssl.SSLSocket, *, cluster: str, host: str) -> None:
    """Raises RuntimeError unless the other end's certificate names the agent of that host in this cluster."""
    certificate = connection.getpeercert() or {}
    names: Any = certificate.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    wanted = agent_uri(host, cluster)
    if wanted not in uris:
        raise RuntimeError(f"its certificate names {', '.join(uris) or 'no agent'}, not {wanted}")


def _load(context: ssl.SSLContext, tls: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(tls.cert, tls.key)
        context.load_verify_locations(tls.ca)
    except (OSError, ssl.SSLError) as error:
        raise FleetError(
            "E808", f"certificates {tls.cert}, {tls.ca} cannot be used: {error}", hint="run `odctl bootstrap`"
        ) from error
    return context
