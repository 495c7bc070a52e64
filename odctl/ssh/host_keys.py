"""Whether a host is the one it was: our own decision, in our own words, shared by every SSH backend.

Unknown (E203) and changed (E204) are different troubles: the first is a question, the second an alarm.
There is no "off", and ssh_config has no say here: an SSH library that follows `UserKnownHostsFile none`
would switch checking off silently. Reads known_hosts files; writes to our own only, when asked to accept.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import FleetError
from odctl.inventory import HostKeys
from odctl.ssh.failures import UNKNOWN_HOST_KEY, WRONG_HOST_KEY

log = logging.getLogger(__name__)

DEFAULT_PORT = 22
Marker = Literal["", "@revoked", "@cert-authority"]


class KnownKey(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a known_hosts file that speaks of a host. `key` is `<type> <base64>`."""

    key: str
    marker: Marker
    file: Path
    line: int


class KnownKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say of one host and port."""

    trusted: tuple[KnownKey, ...] = ()
    portless: tuple[KnownKey, ...] = ()
    """Keys of the same host at port 22: good enough to trust, not to call another key changed."""
    revoked: tuple[KnownKey, ...] = ()
    authorities: tuple[KnownKey, ...] = ()


class HostKeyCheck:
    """The decision for one connection attempt. `refusal` says why the last offered key was not accepted."""

    def __init__(
        self,
        host: str,
        *,
        files: Sequence[Path],
        own_file: Path,
        policy: HostKeys,
        pin: str | None = None,
    ) -> None:
        self.refusal: FleetError | None = None
        self._host = host
        self._files = (*files, own_file)
        self._own_file = own_file
        self._policy = policy
        self._pin = pin

    def known(self, address: str, port: int) -> KnownKeys:
        return find_known_keys(self._files, address, port)

    def accepts(self, address: str, port: int, key: str) -> bool:
        """Whether `key` (`<type> <base64>`) may be this host's. Remembers it under `accept-new`."""
        known = self.known(address, port)
        place = f"{address}:{port}"
        offered = f"{key.split(maxsplit=1)[0]} {fingerprint(key)}"
        revoked = next((entry for entry in known.revoked if entry.key == key), None)
        if revoked:
            message = f"the host key of {place} is revoked ({offered}) by {revoked.file}:{revoked.line}"
            return self._refuse(WRONG_HOST_KEY, message, hint="somebody marked this key as stolen: do not connect")
        if self._pin is not None:
            return self._accepts_pinned(place, key, offered)
        if any(entry.key == key for entry in (*known.trusted, *known.portless)):
            return True
        if known.trusted:
            return self._refuse_changed(place, offered, known.trusted)
        if self._policy == "accept-new":
            remember_key(self._own_file, address, port, key)
            log.warning("%s: new host key of %s accepted: %s", self._host, place, offered)
            return True
        return self._refuse(
            UNKNOWN_HOST_KEY,
            f"the host key of {place} is not known: {offered}",
            hint="compare it with `ssh-keygen -lf` of the key on the host's console; if it is the same, pin it "
            f'(host_key = "{fingerprint(key)}"), or log in once with ssh, or pass --accept-new',
        )

    def refuse_authority(self, address: str, port: int, authority: str) -> bool:
        """The host shows a certificate, and nothing says that its signer may vouch for it."""
        known = self.known(address, port)
        what = f"the certificate of {address}:{port} is signed by an authority that is not trusted for it"
        code = WRONG_HOST_KEY if known.authorities or known.trusted else UNKNOWN_HOST_KEY
        hint = "add the authority as `@cert-authority` to known_hosts if it is yours"
        return self._refuse(code, f"{what}: {fingerprint(authority)}", hint=hint)

    def _accepts_pinned(self, place: str, key: str, offered: str) -> bool:
        if fingerprint(key) == self._pin:
            return True
        message = f"the host key of {place} is not the pinned one: offered {offered}, pinned {self._pin}"
        hint = "if the host was reinstalled, compare the key at its console and change `host_key`"
        return self._refuse(WRONG_HOST_KEY, message, hint=hint)

    def _refuse_changed(self, place: str, offered: str, trusted: Sequence[KnownKey]) -> bool:
        lines = "; ".join(f"{entry.file}:{entry.line} has {fingerprint(entry.key)}" for entry in trusted)
        return self._refuse(
            WRONG_HOST_KEY,
            f"THE HOST KEY OF {place} HAS CHANGED: offered {offered}; {lines}",
            hint="either the host was reinstalled or somebody is in between: compare the key at the host's "
            "console, and only then remove the line named above",
        )

    def _refuse(self, code: str, message: str, *, hint: str) -> bool:
        self.refusal = FleetError(code, message, hint=hint, host=self._host)
        return False


def fingerprint(key: str) -> str:
    """`SHA256:…` of `<type> <base64>`, as `ssh-keygen -l` prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def find_known_keys(files: Iterable[Path], address: str, port: int) -> KnownKeys:
    """What known_hosts files say of an address; files that are not there say nothing."""
    at_port = address if port == DEFAULT_PORT else f"[{address}]:{port}"
    entries: dict[str, list[KnownKey]] = {"trusted": [], "portless": [], "@revoked": [], "@cert-authority": []}
    for file in files:
        for number, line in enumerate(_lines_of(file), 1):
            parsed = _parse_line(line)
            if parsed is None:
                continue
            marker, patterns, key = parsed
            is_at_port = _matches(patterns, at_port)
            if is_at_port or _matches(patterns, address):
                entry = KnownKey(key=key, marker=marker, file=file, line=number)
                entries[marker or ("trusted" if is_at_port else "portless")].append(entry)
    return KnownKeys(
        trusted=tuple(entries["trusted"]),
        portless=tuple(entries["portless"]),
        revoked=tuple(entries["@revoked"]),
        authorities=tuple(entries["@cert-authority"]),
    )


def remember_key(file: Path, address: str, port: int, key: str) -> None:
    """Append a key to our own known_hosts file, which only its owner may read."""
    at_port = address if port == DEFAULT_PORT else f"[{address}]:{port}"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a") as opened:
        opened.write(f"{at_port} {key}\n")


def _lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        # Skipping it could turn a changed key into an unknown one.
        raise FleetError(UNKNOWN_HOST_KEY, f"cannot read host keys: {file}: {error.strerror}") from error


def _parse_line(line: str) -> tuple[Marker, str, str] | None:
    """Marker, host patterns and `<type> <base64>`; None for comments and what nobody can read."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    marker: Marker = ""
    if words[0] in ("@revoked", "@cert-authority"):
        marker = "@revoked" if words[0] == "@revoked" else "@cert-authority"
        words = words[1:]
    if len(words) < 3 or words[0].startswith("@"):
        return None
    try:
        base64.b64decode(words[2], validate=True)
    except binascii.Error:
        return None
    return marker, words[0], f"{words[1]} {words[2]}"


def _matches(patterns: str, name: str) -> bool:
    """OpenSSH's host patterns: hashed names, `*` and `?`, and `!` that overrules every match."""
    if patterns.startswith("|1|"):
        return _matches_hashed(patterns, name)
    is_match = False
    for pattern in patterns.lower().split(","):
        # Brackets are part of `[host]:port` here, not a character class.
        plain = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name.lower(), plain):
            if pattern.startswith("!"):
                return False
            is_match = True
    return is_match


def _matches_hashed(pattern: str, name: str) -> bool:
    try:
        _, _, salt, digest = pattern.split("|")
        expected = base64.b64decode(digest)
        # HMAC-SHA1 is the format's; it hides names and secures nothing.
        actual = hmac.new(base64.b64decode(salt), name.encode(), "sha1").digest()
    except ValueError:
        return False
    return hmac.compare_digest(expected, actual)
