"""One SSH connection that is opened when needed and again when it was lost. Runs on the SSH loop only.

Host keys are checked by `host_keys` on every hop, whatever ssh_config says; jumps are opened by us and not by
asyncssh, which would apply ssh_config's idea of known hosts to them.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import asyncssh
import msgspec

from agent.errors import ErrorDetail, FleetError
from odctl.inventory import Host, Inventory
from odctl.ssh import failures
from odctl.ssh.endpoint import Endpoint, endpoint_of, jump_endpoint
from odctl.ssh.host_keys import HostKeyCheck

MAX_PARALLEL_HANDSHAKES = 16
"""Of this process; sshd starts refusing at 10 from one place (MaxStartups 10:30:100)."""
MAX_ATTEMPTS = 5
RETRY_S = 0.3
"""Before the second attempt; doubles, with jitter."""
CLOSE_S = 2.0
PLAIN_HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)

_handshakes: asyncio.Semaphore | None = None


class Keepalive(msgspec.Struct, frozen=True, kw_only=True):
    """A silent connection is given up after `interval_s * (count + 1)`."""

    interval_s: float = 5.0
    count: int = 3


class Link:
    """A connection to one endpoint, through its jumps."""

    def __init__(
        self,
        inventory: Inventory,
        host: Host,
        endpoint: Endpoint,
        *,
        keepalive: Keepalive,
        chain: tuple[Endpoint, ...] = (),
    ) -> None:
        self.endpoint = endpoint
        self._inventory = inventory
        self._host = host
        self._keepalive = keepalive
        self._chain = chain
        """The endpoints that wait for this one, so that a circle in ssh_config does not wait for itself."""
        self._opening = asyncio.Lock()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._last_jump: Link | None = None
        self._failure: tuple[float, ErrorDetail | None] = (0.0, None)
        """The last failed attempt and when it failed, on the monotonic clock."""

    async def get(self) -> asyncssh.SSHClientConnection:
        """An open connection. Raises FleetError E201 to E204.

        Those who wait while one attempt fails share its failure: were each to try in turn, the tenth would hear
        of a host that is down after ten timeouts.
        """
        asked_at_s = time.monotonic()
        async with self._opening:
            if self._connection is not None and not self._connection.is_closed():
                return self._connection
            failed_at_s, failure = self._failure
            if failure is not None and failed_at_s > asked_at_s:
                raise FleetError.from_detail(failure)
            try:
                self._connection = await self._open()
            except FleetError as error:
                self._failure = (time.monotonic(), error.detail)
                raise
            return self._connection

    def forget(self, connection: asyncssh.SSHClientConnection) -> None:
        """Do not give out this connection again: it turned out to be lost before asyncssh had closed it."""
        if self._connection is connection:
            self._connection = None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await connection.wait_closed()
            except TimeoutError:
                connection.abort()
        jump, self._last_jump = self._last_jump, None
        if jump is not None:
            await release_jump(jump)

    async def _open(self) -> asyncssh.SSHClientConnection:
        jumps = self.endpoint.jump
        options = await self._read_ssh_config()
        if jumps is None and isinstance(options.tunnel, str):
            jumps = tuple(
                jump_endpoint(
                    self._inventory, text, via=self._host, accept_new=self.endpoint.host_keys == "accept-new"
                )
                for text in options.tunnel.split(",")
            )
        tunnel = None
        if jumps:
            if self._last_jump is None:
                self._last_jump = await self._acquire_jump(jumps)
            tunnel = await self._last_jump.get()
        return await self._connect(options, tunnel)

    async def _acquire_jump(self, jumps: tuple[Endpoint, ...]) -> Link:
        last = jumps[-1]
        if len(jumps) > 1:
            last = msgspec.structs.replace(last, jump=jumps[:-1])
        chain = (*self._chain, self.endpoint)
        if last in chain:
            way = " -> ".join(endpoint.host for endpoint in (*chain, last))
            raise failures.unreachable(
                self.endpoint.host, f"its jumps go in a circle: {way}", hint="see ssh_config"
            )
        key = (last, self._inventory.path)
        shared = _jumps.get(key)
        if shared is None:
            link = Link(self._inventory, self._host, last, keepalive=self._keepalive, chain=chain)
            shared = _jumps[key] = _SharedJump(link)
        shared.users += 1
        return shared.link

    async def _connect(
        self, options: asyncssh.SSHClientConnectionOptions, tunnel: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        where = f"{options.host}:{options.port}"
        check = HostKeyCheck(
            self.endpoint.host,
            files=self._inventory.known_hosts,
            own_file=self._inventory.directory / "known_hosts",
            policy=self.endpoint.host_keys,
            pin=self.endpoint.host_key,
        )
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                # The time runs from here: waiting for a slot behind hosts that are down is no fault of this one.
                async with _handshake_slots(), asyncio.timeout(self.endpoint.connect_timeout_s):
                    return await self._connect_once(check, tunnel)
            except (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError) as error:
                # sshd turned us away before it looked at us.
                if attempt == MAX_ATTEMPTS:
                    reason = f"{where} closed the connection {attempt} times before login"
                    hint = "sshd refuses many logins at once (MaxStartups) or penalises this address"
                    raise failures.unreachable(self.endpoint.host, reason, hint=hint) from error
                await asyncio.sleep(RETRY_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            except (OSError, asyncssh.Error, ValueError) as error:
                raise self._explain(error, check, options, where) from error
        raise AssertionError("the last attempt returns or raises")

    async def _connect_once(
        self, check: HostKeyCheck, tunnel: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            **self._config_arguments(),
            **await asyncio.to_thread(self._key_arguments),
            **self._trust_arguments(check),
            tunnel=tunnel,
            client_factory=lambda: _Witness(check),
            keepalive_interval=self._keepalive.interval_s,
            keepalive_count_max=self._keepalive.count,
            compression_algs=None,
            connect_timeout=None,
            login_timeout=self.endpoint.connect_timeout_s,
            password_auth=False,
            kbdint_auth=False,
            agent_forwarding=False,
            x11_forwarding=False,
            request_pty=False,
            command=None,
        )

    async def _read_ssh_config(self) -> asyncssh.SSHClientConnectionOptions:
        """What ssh_config makes of this endpoint: address, port, user and jumps."""
        try:
            return await asyncio.to_thread(
                lambda: asyncssh.SSHClientConnectionOptions(**self._config_arguments(), client_keys=None)
            )
        except (OSError, ValueError) as error:
            raise failures.unreachable(self.endpoint.host, f"ssh_config cannot be used: {error}") from error

    def _config_arguments(self) -> dict[str, Any]:
        return {
            "config": [str(path) for path in self._inventory.ssh_config],
            "host": self.endpoint.address,
            "port": () if self.endpoint.port is None else self.endpoint.port,
            "username": () if self.endpoint.user is None else self.endpoint.user,
        }

    def _key_arguments(self) -> dict[str, Any]:
        """The one named key and nothing else; without one, what the SSH agent and ssh_config offer."""
        identity = self.endpoint.identity
        if identity is None:
            return {}
        if self.endpoint.is_identity_fallback:
            options = asyncssh.SSHClientConnectionOptions(**self._config_arguments(), client_keys=None)
            if options.config.get("IdentityFile"):
                return {}
        if not identity.is_file():
            raise self._not_authenticated(f"there is no identity file {identity}")
        try:
            asyncssh.read_private_key(identity)
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError) as error:
            if "passphrase" in str(error).lower():
                return self._agent_arguments(identity, error)
            raise self._not_authenticated(f"{identity} is not a usable private key: {error}") from error
        return {"client_keys": [str(identity)], "agent_path": None}

    def _agent_arguments(self, identity: Path, error: Exception) -> dict[str, Any]:
        """A key with a passphrase is used through the SSH agent, restricted to that very key."""
        public = identity.with_name(identity.name + ".pub")
        if not os.environ.get("SSH_AUTH_SOCK") or not public.is_file():
            hint = f"`ssh-add {identity}` gives it to the SSH agent (with {public.name} beside it)"
            raise self._not_authenticated(f"{identity} has a passphrase", hint=hint) from error
        return {"client_keys": [str(identity)], "ignore_encrypted": True, "agent_identities": [str(public)]}

    def _trust_arguments(self, check: HostKeyCheck) -> dict[str, Any]:
        """Every plain key comes to `check`; what is known only steers which kind of key is asked for."""
        options = asyncssh.SSHClientConnectionOptions(**self._config_arguments(), client_keys=None)
        known = check.known(options.host_key_alias or options.host, options.port)
        keys = [entry.key for entry in (known.trusted or known.portless)]
        revoked = {entry.key for entry in known.revoked}
        trusted = _readable([key for key in keys if key not in revoked])
        authorities = _readable([entry.key for entry in known.authorities if entry.key not in revoked])
        if self.endpoint.host_key is not None:
            trusted, authorities = [key for key in trusted if key.get_fingerprint() == self.endpoint.host_key], []
        # Known kinds of key come first, but all are on offer: were none in common, sshd would hang up without
        # a word, and a changed key would look like a network fault.
        kinds = {key.split()[0].replace("ssh-rsa", "rsa-sha2-512") for key in keys}
        plain = sorted(PLAIN_HOST_KEY_ALGORITHMS, key=lambda algorithm: algorithm not in kinds)
        certificates = [f"{algorithm}-cert-v01@openssh.com" for algorithm in plain] if authorities else []
        return {
            "known_hosts": lambda _host, _address, _port: (trusted, authorities, []),
            "server_host_key_algs": certificates + plain,
        }

    def _explain(
        self, error: Exception, check: HostKeyCheck, options: asyncssh.SSHClientConnectionOptions, where: str
    ) -> FleetError:
        name = self.endpoint.host
        match error:
            case asyncssh.HostKeyNotVerifiable():
                return check.refusal or FleetError(failures.UNKNOWN_HOST_KEY, f"{where}: {error.reason}", host=name)
            case asyncssh.PermissionDenied():
                return self._not_authenticated(f"{where} refused user `{options.username}`")
            case asyncssh.ChannelOpenError():
                return failures.unreachable(name, f"the jump host cannot reach {where}: {error.reason}")
            case socket.gaierror():
                return failures.unreachable(name, f"the name `{options.host}` is not found ({error.strerror})")
            case ConnectionRefusedError():
                return failures.unreachable(name, f"connection refused by {where}", hint="is sshd running there?")
            case TimeoutError():
                reason = f"no answer from {where} in {self.endpoint.connect_timeout_s:g} s"
                return failures.unreachable(name, reason, hint="is the host up, the address right?")
            case OSError():
                return failures.unreachable(name, f"{where}: {error.strerror or error}")
            case _:
                return failures.unreachable(name, f"{where}: {error}")

    def _not_authenticated(self, reason: str, *, hint: str = "") -> FleetError:
        identity = self.endpoint.identity
        if identity is not None and not self.endpoint.is_identity_fallback:
            offered = f"key {identity}"
        else:
            agent = "the SSH agent's keys" if os.environ.get("SSH_AUTH_SOCK") else "no SSH agent"
            offered = f"ssh_config's or default keys, {agent}"
        way_out = hint or "`identity` names the key and `user` the login"
        message = f"{reason} (offered: {offered})"
        return FleetError(failures.AUTHENTICATION, message, hint=way_out, host=self.endpoint.host)


class _Witness(asyncssh.SSHClient):
    """Puts asyncssh's questions to our own check."""

    def __init__(self, check: HostKeyCheck) -> None:
        self._check = check

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        return self._check.accepts(host, port, _plain(key))

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        return self._check.refuse_authority(host, port, _plain(key))


def _plain(key: asyncssh.SSHKey) -> str:
    """`<type> <base64>` without the comment."""
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


def _readable(keys: list[str]) -> list[asyncssh.SSHKey]:
    """Keys of kinds that asyncssh reads; a known_hosts file may hold others."""
    found = []
    for key in keys:
        try:
            found.append(asyncssh.import_public_key(key))
        except asyncssh.KeyImportError:
            continue
    return found


def _handshake_slots() -> asyncio.Semaphore:
    global _handshakes  # noqa: PLW0603 - made on the SSH loop, which outlives every link
    if _handshakes is None:
        _handshakes = asyncio.Semaphore(MAX_PARALLEL_HANDSHAKES)
    return _handshakes


class _SharedJump:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.users = 0


_jumps: dict[tuple[Endpoint, Path], _SharedJump] = {}
"""Links to jump hosts in use, so that fifty hosts behind a bastion log in to it once."""


async def release_jump(link: Link) -> None:
    """Close the link when this was its last user."""
    for key, shared in list(_jumps.items()):
        if shared.link is link:
            shared.users -= 1
            if shared.users == 0:
                del _jumps[key]
                await link.close()
            return


def link_to(inventory: Inventory, host: Host, *, accept_new: bool, keepalive: Keepalive) -> Link:
    """The link of an inventory host; opens nothing yet."""
    return Link(inventory, host, endpoint_of(inventory, host, accept_new=accept_new), keepalive=keepalive)
