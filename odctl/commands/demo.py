"""`odctl demo`: the main job from nothing, on a throw-away cluster of this machine.

It calls the same verbs that a user would, prints each as a command line, and cleans up after itself.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from odctl.lab import Lab

PROMPT = "A class is"


@click.command("demo")
@click.option("--ssh", "with_ssh", is_flag=True, help="Reach the hosts through real sshds on loopback addresses.")
@click.option("--prompt", default=PROMPT, show_default=True)
@click.option("--steps", default=80, show_default=True, help="Training steps of the model that is made.")
@click.option("--keep", is_flag=True, help="Leave the cluster running; `odctl lab down --name demo` removes it.")
def command(with_ssh: bool, prompt: str, steps: int, keep: bool) -> None:
    """Make a cluster and a model, bootstrap, plan, apply, ask, and clean up."""
    run_command(lambda: demo(with_ssh=with_ssh, prompt=prompt, steps=steps, keep=keep), as_json=False)


def demo(*, with_ssh: bool, prompt: str, steps: int, keep: bool) -> Result:
    """Two stages on three agents, the second one tensor-parallel over two. Raises what the verbs raise."""
    from odctl.lab import Lab

    started_at = time.monotonic()
    lab = Lab(name="demo", num_hosts=3, kind="ssh" if with_ssh else "local")
    _say(f"odctl lab up --name demo --hosts 3 {'--ssh' if with_ssh else '--local'}")
    lab.down()
    lab.up()
    try:
        _main_job(lab, prompt=prompt, steps=steps)
        if keep:
            return Result(kind="demo", data=None, prose=f"\nkept: export ODCTL_INVENTORY={lab.inventory_path}")
        _clean_up(lab)
    finally:
        if not keep:
            lab.down()
    return Result(kind="demo", data=None, prose=f"\ndone in {time.monotonic() - started_at:.0f} s; nothing is left")


def _main_job(lab: Lab, *, prompt: str, steps: int) -> None:
    from odctl.commands.apply import apply
    from odctl.commands.bootstrap import bootstrap
    from odctl.commands.models import make_demo
    from odctl.commands.plan import plan
    from odctl.commands.run import run
    from odctl.commands.status import status

    inventory = str(lab.inventory_path)
    model, plan_path = lab.directory / "speaker", lab.directory / "plan.toml"
    _say(f"odctl bootstrap -i {inventory}")
    _show(bootstrap(inventory, "all"))
    _say(f"odctl models make-demo {model} --steps {steps}")
    _show(make_demo(model, {"steps": steps}))
    listen = f"127.0.0.1:{_free_port()}"
    _say(f"odctl plan {model} --strategy hybrid --tensor 1,2 --context 512 --listen {listen} -o {plan_path}")
    _show(
        plan(
            inventory,
            model=str(model),
            output=str(plan_path),
            name="speaker",
            strategy="hybrid",
            tensor="1,2",
            context=512,
            listen=listen,
        )
    )
    _say(f"odctl apply {plan_path} --yes")
    _show(apply(inventory, str(plan_path), dry_run=False, yes=True, detach=False))
    _say(f'odctl run speaker --raw --verbose --temperature 0 --max-tokens 48 "{prompt}"')
    sys.stdout.write(prompt)
    _show(run(inventory, "speaker", prompt, raw=True, max_tokens=48, temperature=0.0, verbose=True))
    _say("odctl status")
    _show(status(inventory, ""))


def _clean_up(lab: Lab) -> None:
    from odctl.commands.destroy import destroy_deployment
    from odctl.commands.uninstall import uninstall

    inventory = str(lab.inventory_path)
    _say("odctl destroy speaker --yes")
    _show(destroy_deployment(inventory, "speaker", yes=True))
    _say("odctl uninstall --yes")
    _show(uninstall(inventory, "all", yes=True))
    left = [host.prefix for host in lab.hosts if Path(host.prefix).exists()]
    assert not left, f"uninstall left {left}"
    _say("odctl lab down --name demo")


def _say(command_line: str) -> None:
    sys.stderr.flush()
    sys.stdout.write(f"\n$ {command_line}\n")
    sys.stdout.flush()


def _show(result: Result) -> None:
    sys.stderr.flush()
    sys.stdout.write(result.prose.rstrip("\n") + "\n")
    sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
