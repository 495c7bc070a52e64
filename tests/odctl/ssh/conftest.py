"""Both backends of the Transport, each with a home directory of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from odctl.ssh.local import LocalTransport
from odctl.ssh.transport import Transport
from odctl.ssh.with_asyncssh import AsyncsshTransport
from tests.odctl.ssh.sshd import Sshd, needs_sshd, running_sshd


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    transport: Transport
    home: Path


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's SSH agent or odctl state takes part, and nothing is left in it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="session")
def shared_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(params=[pytest.param("ssh", marks=[pytest.mark.ssh, needs_sshd]), "local"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if request.param == "local":
        transport: Transport = LocalTransport("box", home=tmp_path / "home")
        home = tmp_path / "home"
        home.mkdir()
    else:
        server: Sshd = request.getfixturevalue("shared_sshd")
        inventory = server.inventory()
        transport = AsyncsshTransport(inventory, inventory.host("box"))
        home = server.home
    yield Backend(transport=transport, home=home)
    await transport.close()
