"""Who may speak to the UI in a browser. Pure: headers in, a refusal or nothing out.

Three doors, because each stops another intruder. **Host**: a name of another site can be made to resolve to this
machine (DNS rebinding), so a request must call this server by one of its own names. **Origin** and Fetch metadata:
any page that the operator visits can make the browser send requests here, cookies included, and a websocket is not
held back by the same-origin policy. **Cookie**: other users of this machine reach loopback as well as the operator.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from agent.errors import FleetError

BAD_ACCESS = "E120"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
METHODS = frozenset({"GET", "HEAD"})
SHOWN_CHARS = 80
"""Of what a stranger sent, in a refusal."""


class Refusal(NamedTuple):
    status: int
    reason: str


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """`names`: what Host may call the server, without ports. `origins`: `https://name[:port]` of proxies."""

    token: str
    session: str
    """The cookie's value. Not the token: what a browser stores is worth nothing to the next server."""
    names: frozenset[str]
    origins: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Access(token=[REDACTED], session=[REDACTED], names={set(self.names)}, origins={set(self.origins)})"

    def base_url(self, host: str) -> str:
        """The address at which a browser that says `Host: host` sees this server."""
        for origin in self.origins:
            if urlsplit(origin).netloc == host.lower():
                return origin
        return f"http://{host.lower()}"

    def refuse_stranger(self, method: str, headers: Mapping[str, str], *, is_websocket: bool) -> Refusal | None:
        """Why a request comes from somewhere else than our own page, or None. Says nothing of the cookie."""
        if method not in METHODS:
            return Refusal(405, f"{method[:SHOWN_CHARS]} is not for this server")
        host = headers.get("Host", "")
        if host_name(host) not in self.names:
            known = ", ".join(sorted(self.names))
            return Refusal(
                403, f"this server is not called {_shown(host)} but {known} (odctl web --origin names others)"
            )
        origin = headers.get("Origin")
        if origin is None and is_websocket:
            return Refusal(403, "a websocket without an Origin does not come from the page of this server")
        if origin is not None and origin.lower() != self.base_url(host):
            return Refusal(403, f"a page of {_shown(origin)} may not speak to {self.base_url(host)}")
        is_visit = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        if headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"} and not is_visit:
            return Refusal(403, "another site may link to this page, not load parts of it")
        return None

    def is_token(self, text: str) -> bool:
        return _is_same(text, self.token)

    def is_session(self, text: str) -> bool:
        return _is_same(text, self.session)


def make_access(token: str, *, listen: str, origins: tuple[str, ...] = ()) -> Access:
    """Access to a server that listens on the address `listen`. Raises FleetError E120 for what is no origin."""
    names = set(LOOPBACK_NAMES)
    if not is_wildcard(listen):
        names.add(listen.lower())
    checked = [_checked_origin(origin) for origin in origins]
    names |= {urlsplit(origin).hostname or "" for origin in checked}
    return Access(
        token=token, session=secrets.token_urlsafe(32), names=frozenset(names), origins=frozenset(checked)
    )


def host_name(host: str) -> str:
    """`Host` without its port and brackets, in lower case; empty when it is no host."""
    if not set(host).isdisjoint("@/?#\\"):
        return ""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    return (parts.hostname or "").rstrip(".")


def is_loopback(listen: str) -> bool:
    """Whether an address is this machine's alone. A name other than `localhost` may be anybody's."""
    if listen.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(listen).is_loopback
    except ValueError:
        return False


def is_wildcard(listen: str) -> bool:
    try:
        return ipaddress.ip_address(listen).is_unspecified
    except ValueError:
        return listen == ""


def _checked_origin(text: str) -> str:
    parts = urlsplit(text)
    bare = f"{parts.scheme}://{parts.netloc}".lower()
    if parts.scheme not in {"http", "https"} or not host_name(parts.netloc) or text.lower().rstrip("/") != bare:
        raise FleetError(
            BAD_ACCESS,
            f"--origin {text!r} is no origin",
            hint="write what the browser's address begins with: https://lab.example or http://10.0.0.5:7117",
        )
    return bare


def _is_same(text: str, secret: str) -> bool:
    """In constant time, whatever the lengths."""
    digests = (hashlib.sha256(value.encode(errors="surrogateescape")).digest() for value in (text, secret))
    return hmac.compare_digest(*digests)


def _shown(text: str) -> str:
    return ascii(text[:SHOWN_CHARS])
