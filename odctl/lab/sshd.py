"""Real sshds for lab hosts: unprivileged, on loopback addresses, each with its own host key and HOME."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec

from agent.errors import FleetError

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.05


class LabSshd(msgspec.Struct, frozen=True, kw_only=True):
    """One sshd: everything of it lies in `directory`."""

    directory: Path
    home: Path
    address: str
    port: int

    @property
    def config_path(self) -> Path:
        return self.directory / "sshd_config"

    @property
    def pid_path(self) -> Path:
        return self.directory / "sshd.pid"

    @property
    def known_hosts_line(self) -> str:
        kind, key, *_ = (self.directory / "host_key.pub").read_text().split()
        return f"[{self.address}]:{self.port} {kind} {key}\n"

    def start(self, *, authorized_keys: Path) -> None:
        """Write keys and configuration, and start it unless it runs. Returns when it accepts connections."""
        if self.pid() is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_key(self.directory / "host_key")
        program = find_sshd()
        if os.geteuid() == 0:
            # Debian's sshd, started as root, insists on its own empty directory.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        lines = self._config(authorized_keys)
        # Newer sshds ban an address that fails to log in; all lab hosts share ours. Older ones refuse the word.
        self.config_path.write_text("".join(f"{line}\n" for line in [*lines, "PerSourcePenalties no"]))
        if subprocess.run([program, "-t", "-f", self.config_path], capture_output=True, check=False).returncode:
            self.config_path.write_text("".join(f"{line}\n" for line in lines))
        log = self.directory / "sshd.log"
        # It leaves for the background by itself; its paths must be absolute for that.
        started = subprocess.run(
            [program, "-f", self.config_path, "-E", log], capture_output=True, text=True, check=False
        )
        if started.returncode != 0 or not self._wait_for_listener():
            said = started.stderr.strip() or (log.read_text().strip()[-400:] if log.exists() else "")
            raise FleetError(
                "E901", f"sshd does not start on {self.address}:{self.port}: {said}", hint=f"see {log}"
            )

    def pid(self) -> int | None:
        """The running sshd's pid; `None` when none runs, or the pid is another program's by now."""
        try:
            pid = int(self.pid_path.read_text())
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.config_path).encode() in command_line else None

    def stop(self) -> None:
        """End it and the sessions that it serves."""
        pid = self.pid()
        if pid is None:
            return
        ours = [pid, *_children_of(pid)]
        for number, limit_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
            for each in ours:
                _signal(each, number)
            deadline = time.monotonic() + limit_s
            while any(_is_alive(each) for each in ours) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if not any(_is_alive(each) for each in ours):
                break
        self.pid_path.unlink(missing_ok=True)

    def _config(self, authorized_keys: Path) -> list[str]:
        return [
            f"ListenAddress {self.address}:{self.port}",
            f"HostKey {self.directory / 'host_key'}",
            f"PidFile {self.pid_path}",
            f"AuthorizedKeysFile {authorized_keys}",
            f"AllowUsers {getpass.getuser()}",
            f"SetEnv HOME={self.home}",
            "PermitRootLogin prohibit-password",
            "PubkeyAuthentication yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "MaxStartups 100:30:200",
            "MaxSessions 100",
            "PrintMotd no",
            "Subsystem sftp internal-sftp",
        ]

    def _wait_for_listener(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                with socket.create_connection((self.address, self.port), timeout=1.0):
                    return True
            except OSError:
                time.sleep(POLL_S)
        return False


def find_sshd() -> str:
    """OpenSSH's server, which must be started by its full path. Raises FleetError E901."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")
    if program is None:
        raise FleetError(
            "E901", "there is no sshd on this machine", hint="install openssh-server, or use `--local`"
        )
    return program


def make_key(path: Path) -> None:
    """An Ed25519 key pair without passphrase in `path` and `path.pub`, unless it is there."""
    if not path.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "odctl lab", "-f", path],
            check=True,
            capture_output=True,
        )


def _children_of(pid: int) -> list[int]:
    """Children and theirs: sshd keeps two processes a session."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *_children_of(int(child))]
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it went by itself, which is what was wanted


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
