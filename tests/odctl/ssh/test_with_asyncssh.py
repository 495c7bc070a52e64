"""What only SSH can get wrong, against a real sshd: host keys, jumps, dead links, limits and noise."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.errors import FleetError
from odctl.inventory import Inventory
from odctl.ssh.connect import transport_for
from odctl.ssh.link import Keepalive
from odctl.ssh.local import LocalTransport
from odctl.ssh.with_asyncssh import AsyncsshTransport
from tests.odctl.ssh.silent_proxy import silent_proxy
from tests.odctl.ssh.sshd import (
    USER,
    Sshd,
    add_to_agent,
    make_key,
    needs_sshd,
    public_key,
    running_sshd,
    set_passphrase,
    wait_until,
)

pytestmark = [pytest.mark.ssh, needs_sshd]

StartSshd = Callable[..., Sshd]


@pytest.fixture
def start_sshd(tmp_path: Path) -> Iterator[StartSshd]:
    servers: list[Sshd] = []

    def start(*options: str, address: str = "127.0.0.1") -> Sshd:
        server = Sshd(tmp_path / f"sshd{len(servers)}", address=address, options=options)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path / "sshd") as running:
        yield running


@asynccontextmanager
async def transport_to(
    inventory: Inventory, name: str = "box", *, accept_new: bool = False, keepalive: Keepalive | None = None
) -> AsyncIterator[AsyncsshTransport]:
    host = inventory.host(name)
    transport = AsyncsshTransport(inventory, host, accept_new=accept_new, keepalive=keepalive)
    yield transport
    await transport.close()


async def failure_of(inventory: Inventory, *, accept_new: bool = False) -> FleetError:
    async with transport_to(inventory, accept_new=accept_new) as transport:
        with pytest.raises(FleetError) as caught:
            await transport.connect()
    assert caught.value.host == "box"
    return caught.value


# Host keys


async def test_an_unknown_host_key_is_refused_with_its_fingerprint(server: Sshd) -> None:
    server.known_hosts.write_text("")
    error = await failure_of(server.inventory())
    assert error.code == "E203"
    assert server.host_key_fingerprint() in error.message
    assert "--accept-new" in error.hint


async def test_accept_new_trusts_the_first_contact_and_then_no_other_key(server: Sshd) -> None:
    server.known_hosts.write_text("")
    inventory = server.inventory()
    async with transport_to(inventory, accept_new=True) as transport:
        assert (await transport.run(["echo", "in"])).text == "in\n"
    own_file = inventory.directory / "known_hosts"
    assert own_file.read_text() == f"{server.place} {server.host_key}\n"
    async with transport_to(inventory) as transport:
        await transport.connect()
    own_file.write_text(f"{server.place} {public_key(server.identity)}\n")
    error = await failure_of(inventory, accept_new=True)
    assert error.code == "E204"
    assert f"{own_file}:1" in error.message


async def test_a_changed_host_key_is_a_hard_stop(server: Sshd) -> None:
    server.trust(public_key(server.identity))
    for accept_new in (False, True):
        error = await failure_of(server.inventory(), accept_new=accept_new)
        assert error.code == "E204"
        assert "HAS CHANGED" in error.message
        assert f"{server.known_hosts}:2" in error.message


async def test_a_key_of_another_kind_than_known_is_a_changed_one(server: Sshd) -> None:
    make_key(server.folder / "ecdsa", kind="ecdsa")
    server.trust(public_key(server.folder / "ecdsa"))
    assert (await failure_of(server.inventory(), accept_new=True)).code == "E204"


async def test_a_revoked_host_key_is_refused(server: Sshd) -> None:
    server.trust(server.host_key, marker="@revoked")
    error = await failure_of(server.inventory(), accept_new=True)
    assert (error.code, "revoked" in error.message) == ("E204", True)


async def test_a_pin_admits_its_key_only(server: Sshd) -> None:
    server.known_hosts.write_text("")
    async with transport_to(server.inventory(host=f'host_key = "{server.host_key_fingerprint()}"')) as transport:
        await transport.connect()
    server.trust(server.host_key)
    error = await failure_of(server.inventory(host=f'host_key = "SHA256:{"A" * 43}"'))
    assert (error.code, "pinned" in error.message) == ("E204", True)


async def test_a_host_certificate_needs_an_authority_for_that_host(start_sshd: StartSshd, tmp_path: Path) -> None:
    make_key(tmp_path / "ca")
    server = start_sshd(f"HostCertificate {tmp_path}/sshd0/host_key-cert.pub")
    server.stop()
    server.certify_host_key(tmp_path / "ca")
    server.start()
    server.trust(public_key(tmp_path / "ca"), marker="@cert-authority")
    async with transport_to(server.inventory()) as transport:
        await transport.connect()
    make_key(tmp_path / "other_ca")
    server.trust(public_key(tmp_path / "other_ca"), marker="@cert-authority")
    assert (await failure_of(server.inventory())).code == "E204"
    server.known_hosts.write_text("")
    assert (await failure_of(server.inventory())).code == "E203"


async def test_ssh_config_cannot_switch_the_check_off(server: Sshd) -> None:
    server.known_hosts.write_text("")
    (server.folder / "ssh_config").write_text(
        "Host *\n  UserKnownHostsFile none\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking no\n"
    )
    assert (await failure_of(server.inventory())).code == "E203"


# Authentication


async def test_a_refused_key_is_named(server: Sshd) -> None:
    make_key(server.folder / "stranger")
    error = await failure_of(server.inventory(host=f'identity = "{server.folder / "stranger"}"'))
    assert error.code == "E202"
    assert f"user `{USER}`" in error.message
    assert "stranger" in error.message


async def test_keys_that_cannot_be_used_say_why(server: Sshd) -> None:
    make_key(server.folder / "locked")
    set_passphrase(server.folder / "locked", "secret")
    (server.folder / "scrap").write_text("no key")
    said = {
        "missing": "there is no identity file",
        "locked": "has a passphrase",
        "scrap": "is not a usable private key",
    }
    for name, reason in said.items():
        error = await failure_of(server.inventory(host=f'identity = "{server.folder / name}"'))
        assert (error.code, reason in error.message) == ("E202", True), error.message


@pytest.fixture
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    wait_until(path.exists, "the agent listens")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait(10)


async def test_a_key_with_a_passphrase_is_used_through_the_agent(server: Sshd, ssh_agent: Path) -> None:
    make_key(server.folder / "other")
    for key in (server.folder / "other", server.identity):
        add_to_agent(key)
    set_passphrase(server.identity, "secret")
    async with transport_to(server.inventory()) as transport:
        await transport.connect()
    log = (server.folder / "sshd.log").read_text()
    assert log.count("Accepted publickey") == 1
    assert "Failed publickey" not in log, "a key that the inventory does not name was offered"


async def test_only_the_named_key_is_offered(server: Sshd, ssh_agent: Path) -> None:
    make_key(server.folder / "other")
    add_to_agent(server.folder / "other")
    async with transport_to(server.inventory()) as transport:
        await transport.connect()
    assert "Failed publickey" not in (server.folder / "sshd.log").read_text()


# Ways to a host


async def test_an_alias_of_ssh_config_is_followed(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "included").write_text(f"Host lab\n  HostName 127.0.0.1\n  Port {server.port}\n")
    (server.folder / "ssh_config").write_text(f"Include {tmp_path}/incl*\n")
    inventory = server.inventory(more='[hosts.lab]\ncluster_address = "10.9.9.9"')
    async with transport_to(inventory, "lab") as transport:
        assert (await transport.run(["echo", "alias"])).text == "alias\n"


async def test_a_broken_ssh_config_is_named(server: Sshd) -> None:
    (server.folder / "ssh_config").write_text("Host *\n  Port twenty-two\n")
    error = await failure_of(server.inventory())
    assert (error.code, "ssh_config line 2" in error.message) == ("E201", True)


def jump_inventory(inner: Sshd, outer: Sshd, *, ssh_config: str = "", jump: str = "", more: str = "") -> Inventory:
    """`box` is `inner`; the bastion is `outer`, and both host keys are in one known_hosts."""
    inner.known_hosts.write_text(f"{inner.place} {inner.host_key}\n{outer.place} {outer.host_key}\n")
    keys = outer.identity.with_suffix(".pub").read_text() + inner.identity.with_suffix(".pub").read_text()
    (outer.folder / "authorized_keys").write_text(keys)
    (inner.folder / "ssh_config").write_text(ssh_config)
    return inner.inventory(host=jump, more=more)


async def test_a_jump_through_an_inventory_host(start_sshd: StartSshd) -> None:
    outer, inner = start_sshd(), start_sshd(address="127.0.0.2")
    bastion = f'[hosts.bastion]\nssh = "127.0.0.1"\nport = {outer.port}\nidentity = "{outer.identity}"'
    inventory = jump_inventory(inner, outer, jump='jump = ["bastion"]', more=bastion)
    async with transport_to(inventory) as transport:
        assert (await transport.run(["echo", "far"])).text == "far\n"
    assert "from 127.0.0.1" in (inner.folder / "sshd.log").read_text()
    assert (outer.folder / "sshd.log").read_text().count("Accepted publickey") == 1


async def test_many_hosts_share_one_login_to_their_jump(start_sshd: StartSshd) -> None:
    outer, inner = start_sshd(), start_sshd(address="127.0.0.2")
    inventory = jump_inventory(inner, outer, jump=f'jump = ["{USER}@127.0.0.1:{outer.port}"]')
    transports = [AsyncsshTransport(inventory, inventory.host("box")) for _ in range(6)]
    async with asyncio.TaskGroup() as group:
        for transport in transports:
            group.create_task(transport.connect())
    assert (inner.folder / "sshd.log").read_text().count("Accepted publickey") == 6
    assert (outer.folder / "sshd.log").read_text().count("Accepted publickey") == 1
    for transport in transports:
        await transport.close()


async def test_proxy_jump_of_ssh_config_and_its_key_is_checked_by_us(start_sshd: StartSshd) -> None:
    outer, inner = start_sshd(), start_sshd(address="127.0.0.2")
    config = f"""Host 127.0.0.2
  ProxyJump hop
Host hop
  HostName 127.0.0.1
  Port {outer.port}
  User {USER}
  UserKnownHostsFile none
"""
    inventory = jump_inventory(inner, outer, ssh_config=config)
    async with transport_to(inventory) as transport:
        assert (await transport.run(["echo", "far"])).text == "far\n"
    assert "Accepted publickey" in (outer.folder / "sshd.log").read_text()
    inner.known_hosts.write_text(f"{inner.place} {inner.host_key}\n{outer.place} {inner.host_key}\n")
    error = await failure_of(inventory)
    assert (error.code, error.message.startswith("jump host hop:")) == ("E204", True)
    async with transport_to(jump_inventory(inner, outer, ssh_config=config, jump="jump = []")) as transport:
        before = (outer.folder / "sshd.log").read_text()
        await transport.connect()
        assert (outer.folder / "sshd.log").read_text() == before, "an empty jump list goes directly"


async def test_jumps_of_ssh_config_in_a_circle_are_told(server: Sshd) -> None:
    (server.folder / "ssh_config").write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    error = await failure_of(server.inventory(host='jump = ["a"]'))
    assert (error.code, "circle" in error.message) == ("E201", True)


async def test_a_jump_that_cannot_reach_the_host_says_which(start_sshd: StartSshd) -> None:
    outer, inner = start_sshd(), start_sshd(address="127.0.0.2")
    inventory = jump_inventory(inner, outer, jump=f'jump = ["{USER}@127.0.0.1:{outer.port}"]')
    inner.stop()
    error = await failure_of(inventory)
    assert (error.code, "the jump host cannot reach" in error.message) == ("E201", True)


# Hosts that do not answer, and connections that die


async def test_refused_and_unknown_names_have_words(server: Sshd) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = await failure_of(server.inventory(port=unused.getsockname()[1]))
    assert (refused.code, "connection refused by 127.0.0.1:" in refused.message) == ("E201", True)
    inventory = server.inventory(more='[hosts.gone]\nssh = "gone.invalid"')
    async with transport_to(inventory, "gone") as transport:
        with pytest.raises(FleetError, match=r"the name `gone\.invalid` is not found") as caught:
            await transport.connect()
    assert caught.value.code == "E201"


async def test_a_silent_port_is_given_up_in_time_and_with_words(server: Sshd) -> None:
    async with silent_proxy(server.port) as proxy:
        proxy.go_silent()
        started = time.monotonic()
        error = await failure_of(server.inventory(port=proxy.port, host="connect_timeout_s = 0.7"))
    assert (error.code, "in 0.7 s" in error.message) == ("E201", True)
    assert time.monotonic() - started < 3


async def test_those_who_wait_for_one_attempt_share_its_failure(server: Sshd) -> None:
    async with silent_proxy(server.port) as proxy:
        proxy.go_silent()
        inventory = server.inventory(port=proxy.port, host="connect_timeout_s = 0.7")
        started = time.monotonic()
        async with transport_to(inventory) as transport, asyncio.TaskGroup() as group:
            failures = [group.create_task(_lost_after(transport, ["true"])) for _ in range(6)]
        assert {task.result().code for task in failures} == {"E201"}
        assert time.monotonic() - started < 3
        server.known_hosts.write_text(f"[127.0.0.1]:{proxy.port} {server.host_key}\n")
        proxy.recover()
        async with transport_to(inventory) as transport:
            await transport.connect()


async def test_a_dead_link_is_noticed_within_the_keepalive_bound(server: Sshd) -> None:
    async with silent_proxy(server.port) as proxy:
        server.known_hosts.write_text(f"[127.0.0.1]:{proxy.port} {server.host_key}\n")
        inventory = server.inventory(port=proxy.port)
        keepalive = Keepalive(interval_s=0.3, count=2)
        async with transport_to(inventory, keepalive=keepalive) as transport:
            begun = server.home / "begun"
            async with asyncio.TaskGroup() as group:
                lost = group.create_task(_lost_after(transport, ["sh", "-c", "touch begun; exec sleep 600"]))
                await asyncio.to_thread(wait_until, begun.exists, "the command runs")
                proxy.go_silent()
                started = time.monotonic()
            assert lost.result().code == "E201"
            assert "connection lost" in lost.result().message
            assert time.monotonic() - started < 0.3 * 3 + 2
            proxy.recover()
            assert (await transport.run(["echo", "back"])).text == "back\n"


async def test_a_frozen_server_is_noticed_and_its_revival_used(server: Sshd) -> None:
    keepalive = Keepalive(interval_s=0.3, count=2)
    async with transport_to(server.inventory(), keepalive=keepalive) as transport:
        stream_home = server.home / "slow.sock"
        async with await asyncio.start_unix_server(_stay_silent, stream_home):
            stream = await transport.open_unix(str(stream_home))
            frozen = server.session_pids()
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(FleetError) as caught:
                await asyncio.wait_for(stream.read(10), 10)
            assert caught.value.code == "E201"
            await stream.close()
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        assert (await transport.run(["echo", "back"])).text == "back\n"


async def _lost_after(transport: AsyncsshTransport, argv: list[str]) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await transport.run(argv, timeout_s=600)
    return caught.value


async def _stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_a_killed_connection_is_opened_again_by_the_next_call(server: Sshd) -> None:
    async with transport_to(server.inventory()) as transport:
        await transport.connect()
        for pid in server.session_pids():
            os.kill(pid, signal.SIGKILL)
        assert (await transport.run(["echo", "again"])).text == "again\n"
        path = server.home / "s.sock"
        async with await asyncio.start_unix_server(_stay_silent, path):
            for pid in server.session_pids():
                os.kill(pid, signal.SIGKILL)
            await (await transport.open_unix(str(path))).close()


async def test_a_connection_lost_during_a_copy_leaves_no_half_file(server: Sshd, tmp_path: Path) -> None:
    source = tmp_path / "big"
    with source.open("wb") as file:
        file.truncate(400 << 20)

    def cut(done: int, _total: int) -> None:
        if done > 1 << 20:
            for pid in server.session_pids():
                os.kill(pid, signal.SIGKILL)

    async with transport_to(server.inventory()) as transport:
        with pytest.raises(FleetError) as caught:
            await transport.put(source, "~/big", on_progress=cut)
        assert caught.value.code == "E201"
        await transport.put_bytes(b"small", "~/small")
    await asyncio.to_thread(
        wait_until, lambda: [path.name for path in server.home.iterdir()] == ["small"], "nothing of it is left"
    )


# Limits and habits of servers


async def test_many_logins_at_once_get_through_a_server_that_turns_some_away(start_sshd: StartSshd) -> None:
    server = start_sshd("MaxStartups 2:50:6")
    inventory = server.inventory(host="connect_timeout_s = 60")
    transports = [AsyncsshTransport(inventory, inventory.host("box")) for _ in range(12)]
    async with asyncio.TaskGroup() as group:
        for transport in transports:
            group.create_task(transport.connect())
    for transport in transports:
        await transport.close()


async def test_more_commands_than_sessions_wait_their_turn(start_sshd: StartSshd) -> None:
    server = start_sshd("MaxSessions 4")
    async with transport_to(server.inventory()) as transport, asyncio.TaskGroup() as group:
        tasks = [group.create_task(transport.run(["echo", str(n)])) for n in range(12)]
    assert [task.result().text for task in tasks] == [f"{n}\n" for n in range(12)]


@pytest.mark.parametrize(
    "option", ["DisableForwarding yes", "AllowTcpForwarding no\nAllowStreamLocalForwarding no"]
)
async def test_forwarding_switched_off_is_told_apart_from_a_missing_socket(
    start_sshd: StartSshd, option: str
) -> None:
    server = start_sshd(option)
    path = server.home / "agent.sock"
    async with await asyncio.start_unix_server(_stay_silent, path), transport_to(server.inventory()) as transport:
        with pytest.raises(FleetError) as caught:
            await transport.open_unix(str(path))
        assert (caught.value.code, caught.value.host) == ("E205", "box")
        with pytest.raises(FleetError) as caught:
            await transport.open_unix(str(server.home / "none.sock"))
        assert caught.value.code == "E206"


async def test_a_login_that_talks_first_disturbs_nothing(start_sshd: StartSshd, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("Authorised use only\n" * 50)
    (tmp_path / "forced.sh").write_text('echo noise; echo more >&2; eval "$SSH_ORIGINAL_COMMAND"\n')
    server = start_sshd(
        f"Banner {tmp_path}/banner", "ForceCommand echo noise; echo more >&2; eval $SSH_ORIGINAL_COMMAND"
    )
    (server.home / ".bashrc").write_text("echo chatter; echo 'more chatter' >&2\n")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20))
    async with transport_to(server.inventory()) as transport:
        result = await transport.run(["sh", "-c", "echo out; echo err >&2"])
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        await transport.put(source, "~/copy")
        await transport.get("~/copy", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes() == (server.home / "copy").read_bytes()


async def test_a_login_that_runs_nothing_is_quoted(start_sshd: StartSshd) -> None:
    server = start_sshd("ForceCommand echo This account is not available; exit 1")
    async with transport_to(server.inventory()) as transport:
        with pytest.raises(FleetError, match="This account is not available") as caught:
            await transport.run(["true"])
    assert caught.value.code == "E301"


# Which transport


def test_the_inventory_decides_which_transport(server: Sshd) -> None:
    inventory = server.inventory(more='[hosts.here]\ntransport = "local"\nhome = "~/here"\ncluster_port = 1')
    assert isinstance(transport_for(inventory, "box"), AsyncsshTransport)
    assert isinstance(transport_for(inventory, "here"), LocalTransport)
    with pytest.raises(FleetError, match="no host `bux`"):
        transport_for(inventory, "bux")
