"""What must be done on a host, from what the probe found. Pure: no I/O, no clock.

Commands are argv lists, never shell strings; a script goes to `sh -s` on standard input. Every step can be run
twice, names the finding that makes it unnecessary, and says how it is undone.
"""

from __future__ import annotations

import hashlib

import msgspec

from agent.wire.agent import AgentConfig
from odctl.bootstrap.fitness import OUR_NAMES, Wanted, choose_python, host_warnings
from odctl.bootstrap.probe import Manifest, ProbeFacts

STALE_LOCK_S = 1800.0
KEEP_RELEASES = 2
HANDSHAKE_TIMEOUT_S = 20.0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    argv: tuple[str, ...]
    stdin: bytes = b""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    data: bytes
    target: str
    mode: int = 0o600


class Certify(msgspec.Struct, frozen=True, kw_only=True):
    """Run `argv`, which prints a certificate request; sign it; put the leaf into `target`."""

    argv: tuple[str, ...]
    target: str


class AwaitHandshake(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the agent's socket until it answers as `release`."""

    socket: str
    release: str
    log: str


Action = Run | Upload | Certify | AwaitHandshake


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """`unless` is the finding that makes it unnecessary. `touches_agent`: undoing it needs the old one started."""

    name: str
    action: Action
    unless: str
    timeout_s: float = 30.0
    undo: tuple[Run | Upload, ...] = ()
    hint: str = ""
    touches_agent: bool = False


class BootstrapPlan(msgspec.Struct, frozen=True, kw_only=True):
    """No steps: nothing to change. `recover` brings the old agent back after the steps were undone."""

    steps: tuple[Step, ...]
    recover: tuple[Step, ...]
    config: AgentConfig
    warnings: tuple[str, ...]


def linger_step(facts: ProbeFacts) -> Step | None:
    """Ask that the account's services outlive its logins. It may be refused, and then the agent is detached."""
    if not facts.has_user_bus or facts.has_linger:
        return None
    return Step(
        name="let the account's services outlive its logins",
        action=Run(argv=("loginctl", "enable-linger")),
        unless="the account lingers",
        undo=(Run(argv=("loginctl", "disable-linger")),),
    )


def plan_bootstrap(facts: ProbeFacts, wanted: Wanted, *, daemon_script: bytes) -> BootstrapPlan:
    """Steps from what is to what is wanted; none where they are the same. `check_host` has passed.

    `daemon_script` is daemon.sh, which starts and stops a detached agent.
    """
    return _Planner(facts, wanted, daemon_script).plan()


class _Planner:
    def __init__(self, facts: ProbeFacts, wanted: Wanted, daemon_script: bytes) -> None:
        self.facts = facts
        self.bundle = wanted.bundle
        self.wanted = wanted
        self.daemon_script = daemon_script
        self.prefix = facts.prefix
        self.release_dir = f"{facts.prefix}/releases/{wanted.bundle.release}"
        self.choice = choose_python(facts, wanted)
        self.is_fresh = not facts.manifest
        self.unit = unit_name(facts.prefix) if facts.has_user_bus else ""
        self.old_unit = facts.known_manifest.unit if facts.known_manifest else ""
        self.config = msgspec.structs.replace(
            wanted.config, prefix=facts.prefix, release=wanted.bundle.release, is_degraded=not facts.has_user_bus
        )

    def plan(self) -> BootstrapPlan:
        changes = [
            *self._lay_directories(),
            *self._unpack_release(),
            *self._build_venv(),
            *self._record_interpreter(),
            *self._renew_certificates(),
            *self._write_config(),
            *self._write_unit(),
            *self._switch_release(),
        ]
        steps = [*changes, *self._restart(has_changes=any(self._needs_restart(step) for step in changes))]
        steps += self._prune_releases()
        return BootstrapPlan(
            steps=tuple(steps),
            recover=tuple(self._start_old_again()),
            config=self.config,
            warnings=tuple(host_warnings(self.facts)),
        )

    def _lay_directories(self) -> list[Step]:
        prefix, facts = self.prefix, self.facts
        venvs = {name for name in facts.entries.split() if name.startswith("venv-")}
        if self.choice.path.startswith(f"{prefix}/venv-"):
            venvs.add(self.bundle.venv)
        old = facts.known_manifest
        manifest = Manifest(
            paths=(*OUR_NAMES[:-1], *sorted(venvs), OUR_NAMES[-1]),
            unit=self.unit,
            had_linger=old.had_linger if old else facts.has_linger,
        )
        steps = []
        if manifest != old:
            everything = tuple(f"{prefix}/{name}" for name in manifest.paths)
            undo: tuple[Run | Upload, ...] = (Upload(data=facts.manifest, target=f"{prefix}/manifest.json"),)
            if self.is_fresh:
                undo = (Run(argv=("rm", "-rf", "--", *everything)),)
            steps.append(
                Step(
                    name="write the manifest",
                    action=Upload(
                        data=msgspec.json.format(msgspec.json.encode(manifest)) + b"\n",
                        target=f"{prefix}/manifest.json",
                    ),
                    unless="the manifest is there and the same",
                    undo=undo,
                )
            )
        if self.is_fresh:
            below = ("releases", "etc", "etc/tls", "var", "var/models", "var/log", "run")
            steps.append(
                Step(
                    name="make directories",
                    action=Run(argv=("mkdir", "-p", "-m", "0700", "--", *(f"{prefix}/{name}" for name in below))),
                    unless="there is a manifest",
                )
            )
        return steps

    def _unpack_release(self) -> list[Step]:
        release = self.bundle.release
        if release in self.facts.releases.split():
            return []
        part = f"{self.prefix}/releases/.{release}.part"
        unless = f"release {release} is there"
        remove_part = Run(argv=("rm", "-rf", "--", part))
        return [
            Step(name="clear the place of the release", action=remove_part, unless=unless),
            Step(
                name="make the place of the release",
                action=Run(argv=("mkdir", "-p", "--", part)),
                unless=unless,
                undo=(remove_part,),
            ),
            Step(
                name=f"unpack release {release}",
                action=Run(argv=("tar", "-xzf", "-", "-C", part), stdin=self.bundle.archive),
                unless=unless,
                timeout_s=120.0,
                hint="is the disk full, or out of inodes?",
            ),
            Step(
                name="put the release in its place",
                action=Run(argv=("mv", "-T", "--", part, self.release_dir)),
                unless=unless,
                undo=(Run(argv=("rm", "-rf", "--", self.release_dir)),),
            ),
        ]

    def _build_venv(self) -> list[Step]:
        if not self.choice.venv_from:
            return []
        venv = f"{self.prefix}/{self.bundle.venv}"
        unless = "an interpreter there has all requirements"
        remove = Run(argv=("rm", "-rf", "--", venv))
        pip = (self.choice.path, "-m", "pip", "install", "--no-input", "--disable-pip-version-check")
        return [
            Step(name="clear a half-built environment", action=remove, unless=unless, timeout_s=120.0),
            Step(
                name="make an environment",
                action=Run(argv=(self.choice.venv_from, "-m", "venv", venv)),
                unless=unless,
                timeout_s=180.0,
                undo=(remove,),
            ),
            Step(
                name="install requirements",
                action=Run(argv=(*pip, "-r", f"{self.release_dir}/requirements.txt")),
                unless=unless,
                timeout_s=3600.0,
                hint="let pip there reach a package index, or name an interpreter that has them with `python =`",
            ),
            Step(name="mark it complete", action=Run(argv=("touch", f"{venv}/.complete")), unless=unless),
        ]

    def _record_interpreter(self) -> list[Step]:
        facts = self.facts
        is_current = facts.current == self.bundle.release
        if is_current and facts.interpreter == self.choice.path:
            return []
        target = f"{self.release_dir}/interpreter"
        old = (Upload(data=f"{facts.interpreter}\n".encode(), target=target),)
        return [
            Step(
                name=f"run it with {self.choice.path}",
                action=Upload(data=f"{self.choice.path}\n".encode(), target=target),
                unless="the release names this interpreter",
                undo=old if is_current else (),
            )
        ]

    def _renew_certificates(self) -> list[Step]:
        facts, tls = self.facts, f"{self.prefix}/etc/tls"
        steps = []
        if facts.ca != self.wanted.ca:
            steps.append(
                Step(
                    name="install the cluster's authority",
                    action=Upload(data=self.wanted.ca, target=f"{tls}/ca.pem", mode=0o644),
                    unless="it is there",
                    undo=_restore(f"{tls}/ca.pem", facts.ca, mode=0o644),
                )
            )
        reason = self.wanted.renew_leaf or ("" if facts.has_key else "its key is gone")
        if reason:
            python = self.choice.path
            request = ("-P", "-m", "agent.tls_request", f"{tls}/host.key", self.config.host)
            steps.append(
                Step(
                    name=f"renew the certificate: {reason}",
                    action=Certify(
                        argv=("env", f"PYTHONPATH={self.release_dir}", python, *request), target=f"{tls}/host.pem"
                    ),
                    unless="the leaf is ours and in the first third of its life",
                    timeout_s=60.0,
                    undo=_restore(f"{tls}/host.pem", facts.leaf, mode=0o644),
                )
            )
        return steps

    def _write_config(self) -> list[Step]:
        if self.facts.agent_config == self.config:
            return []
        target = f"{self.prefix}/etc/agent.json"
        return [
            Step(
                name="write the configuration",
                action=Upload(data=msgspec.json.format(msgspec.json.encode(self.config)) + b"\n", target=target),
                unless="the configuration is the same",
                undo=_restore(target, self.facts.config),
            )
        ]

    def _write_unit(self) -> list[Step]:
        if not self.unit:
            return []
        text, path = unit_text(self.config), f"{self.prefix}/etc/{self.unit}"
        if self.facts.unit == text:
            return []
        unless = "the unit is there and the same"
        undo = _restore(path, self.facts.unit, mode=0o644)
        if not self.facts.unit:
            undo = (self._systemctl("disable", self.unit), *undo)
        return [
            Step(
                name="write the systemd unit",
                action=Upload(data=text, target=path, mode=0o644),
                unless=unless,
                undo=undo,
            ),
            Step(name="enable the unit", action=self._systemctl("enable", path), unless=unless),
            Step(name="have systemd read it", action=self._systemctl("daemon-reload"), unless=unless),
        ]

    def _switch_release(self) -> list[Step]:
        release, old = self.bundle.release, self.facts.current
        if old == release:
            return []
        remove = Run(argv=("rm", "-f", "--", f"{self.prefix}/current"))
        unless = f"current is {release}"
        return [
            Step(name="point at the release", action=self._link(release), unless=unless),
            Step(
                name="switch to the release",
                action=self._rename_link(),
                unless=unless,
                undo=(self._link(old), self._rename_link()) if old else (remove,),
            ),
        ]

    def _restart(self, *, has_changes: bool) -> list[Step]:
        facts, handshake = self.facts, self.facts.handshake
        is_kept = bool(self.unit) or facts.is_keeper_running
        is_well = (
            handshake is not None
            and is_kept
            and handshake.release == self.bundle.release
            and handshake.started_at_s >= facts.configured_at_s
        )
        if is_well and not has_changes:
            return []
        steps = []
        if self.unit and facts.is_keeper_running:
            steps.append(
                Step(
                    name="end the detached agent",
                    action=self._daemon("stop"),
                    unless="no keeper runs",
                    timeout_s=60.0,
                    touches_agent=True,
                )
            )
        return [
            *steps,
            Step(
                name="restart the agent" if facts.is_agent_running else "start the agent",
                action=self._start_action(),
                unless="the agent answers as this release, started after its configuration was written",
                timeout_s=60.0,
                undo=(self._stop_action(),),
                touches_agent=True,
            ),
            self._await(self.bundle.release),
        ]

    def _start_old_again(self) -> list[Step]:
        """What `recover` does: the old release runs again, if it ran."""
        facts = self.facts
        if not facts.current or not (facts.is_agent_running or facts.is_keeper_running or facts.handshake):
            return []
        config = facts.agent_config
        return [
            Step(
                name="start the old agent",
                action=self._systemctl("restart", self.old_unit) if self.old_unit else self._daemon("restart"),
                unless="never",
                timeout_s=60.0,
            ),
            self._await(config.release if config else facts.current),
        ]

    def _prune_releases(self) -> list[Step]:
        there = self.facts.releases.split()
        kept = [self.bundle.release]
        for release in (self.facts.current, *there):
            if release and release not in kept and len(kept) < KEEP_RELEASES:
                kept.append(release)
        superfluous = [release for release in there if release not in kept]
        if not superfluous:
            return []
        paths = tuple(f"{self.prefix}/releases/{release}" for release in superfluous)
        return [
            Step(
                name=f"remove {len(superfluous)} old releases",
                action=Run(argv=("rm", "-rf", "--", *paths)),
                unless=f"no more than {KEEP_RELEASES} releases are there",
            )
        ]

    def _needs_restart(self, step: Step) -> bool:
        return step.name not in ("write the manifest", "make directories")

    def _start_action(self) -> Run:
        if self.unit:
            return self._systemctl("restart", self.unit)
        return self._daemon("restart")

    def _stop_action(self) -> Run:
        if self.unit:
            return self._systemctl("stop", self.unit)
        return self._daemon("stop")

    def _daemon(self, verb: str) -> Run:
        return Run(argv=("sh", "-s", "--", verb, self.prefix), stdin=self.daemon_script)

    def _await(self, release: str) -> Step:
        return Step(
            name="hear from the agent",
            action=AwaitHandshake(
                socket=f"{self.prefix}/run/agent.sock", release=release, log=f"{self.prefix}/var/log/console.log"
            ),
            unless="the agent answers as this release",
            timeout_s=HANDSHAKE_TIMEOUT_S,
            touches_agent=True,
        )

    def _link(self, release: str) -> Run:
        return Run(argv=("ln", "-sfn", "--", f"releases/{release}", f"{self.prefix}/current.new"))

    def _rename_link(self) -> Run:
        return Run(argv=("mv", "-T", "--", f"{self.prefix}/current.new", f"{self.prefix}/current"))

    def _systemctl(self, *arguments: str) -> Run:
        runtime = f"XDG_RUNTIME_DIR={self.facts.runtime_directory}"
        return Run(argv=("env", runtime, "systemctl", "--user", *arguments))


def unit_name(prefix: str) -> str:
    """One unit per prefix, so that two agents of one account do not meet."""
    return f"odctl-agent-{hashlib.sha256(prefix.encode()).hexdigest()[:8]}.service"


def unit_text(config: AgentConfig) -> bytes:
    """KillMode=process: ranks and gateways outlive a restart of the agent."""
    prefix = config.prefix
    return f"""[Unit]
Description=odctl agent of {config.host} in {config.cluster}
StartLimitIntervalSec=0

[Service]
ExecStart=/bin/sh {prefix}/current/agent/launch.sh {prefix}
Restart=always
RestartSec=1
KillMode=process
TimeoutStopSec=15
StandardOutput=append:{prefix}/var/log/console.log
StandardError=inherit

[Install]
WantedBy=default.target
""".encode()


def _restore(target: str, old: bytes, *, mode: int = 0o600) -> tuple[Run | Upload, ...]:
    return (Upload(data=old, target=target, mode=mode),) if old else (Run(argv=("rm", "-f", "--", target)),)
