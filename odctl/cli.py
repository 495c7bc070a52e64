"""Arguments only: one lazy group whose verbs live in `odctl.commands`, one file a verb.

Importing this module must stay cheap: no torch, textual or asyncssh (a test holds it to that).
"""

from __future__ import annotations

import importlib

import click

from odctl.tui.options import UI_OPTIONS, UiOptions

VERBS: dict[str, tuple[str, str]] = {
    "init": ("odctl.commands.init", "Write an inventory from host names or your ssh_config."),
    "bootstrap": ("odctl.commands.bootstrap", "Install or update the agent on hosts."),
    "uninstall": ("odctl.commands.uninstall", "Remove the agent from hosts, leaving nothing behind."),
    "models": ("odctl.commands.models", "List models, check one, or make a demo model."),
    "probe": ("odctl.commands.probe", "Measure devices and links; plans are made with the figures."),
    "plan": ("odctl.commands.plan", "Plan a deployment and write plan.toml."),
    "show": ("odctl.commands.show", "Show a plan."),
    "compare": ("odctl.commands.compare", "Compare plans, by their predictions or measured one after the other."),
    "simulate": ("odctl.commands.simulate", "Serve a load on a virtual clock, before a plan is applied."),
    "apply": ("odctl.commands.apply", "Make the cluster match a plan."),
    "history": (
        "odctl.commands.history",
        "Show a deployment's generations: plans, reasons, predicted and measured.",
    ),
    "rollback": ("odctl.commands.rollback", "Apply the plan that ran before."),
    "status": ("odctl.commands.status", "Show deployments, ranks and hosts."),
    "hosts": ("odctl.commands.hosts", "Show hosts as the fleet view does; --watch follows."),
    "devices": ("odctl.commands.devices", "Show every GPU and CPU; --watch follows."),
    "metrics": ("odctl.commands.metrics", "Show what deployments and hosts do; --watch follows."),
    "run": ("odctl.commands.run", "Ask a deployed model; the answer streams."),
    "requests": ("odctl.commands.requests", "List a deployment's requests in flight."),
    "cancel": ("odctl.commands.cancel", "Cancel one request in flight."),
    "bench": ("odctl.commands.bench", "Put a load on a deployment or any server, and compare two."),
    "faults": ("odctl.commands.faults", "List faults and their evidence."),
    "logs": ("odctl.commands.logs", "Show journals and logs of many hosts, merged; or follow them."),
    "strategies": ("odctl.commands.strategies", "Show what measured runs taught about each strategy."),
    "drain": ("odctl.commands.drain", "Have every deployment serve without a host."),
    "record": ("odctl.commands.record", "Keep what the screens show, in a file."),
    "replay": ("odctl.tui.replay", "Open the terminal UI over a recording."),
    "web": ("odctl.commands.web", "Serve the terminal UI to browsers on this machine."),
    "destroy": ("odctl.commands.destroy", "Stop a deployment and free its memory."),
    "lab": ("odctl.commands.lab", "Make or destroy a throw-away cluster on this machine."),
    "demo": ("odctl.commands.demo", "The main job on a throw-away cluster: plan, apply, a streamed answer."),
}


class LazyGroup(click.Group):
    """Imports a verb's module when it is called, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(VERBS[cmd_name][0])
        command = module.command
        assert isinstance(command, click.Command), f"{VERBS[cmd_name][0]}.command is not a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, summary) for verb, (_, summary) in VERBS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-i",
    "--inventory",
    "inventory_path",
    default="inventory.toml",
    envvar="ODCTL_INVENTORY",
    show_default=True,
    show_envvar=True,
    help="The inventory file.",
)
@click.option("--write", "is_unlocked", is_flag=True, help="Terminal UI: allow changes for the first ten minutes.")
@click.option("--read-only", is_flag=True, help="Terminal UI: changes can never be allowed.")
@click.option(
    "--ascii", "is_ascii", is_flag=True, envvar="ODCTL_ASCII", help="Terminal UI: no glyph that is not ASCII."
)
@click.option("--theme", default="", envvar="ODCTL_THEME", metavar="NAME", help="Terminal UI: its colours.")
@click.version_option(package_name="odctl")
@click.pass_context
def main(
    ctx: click.Context, /, *, inventory_path: str, is_unlocked: bool, read_only: bool, is_ascii: bool, theme: str
) -> None:
    """Run language models that no single machine can hold, on the machines you already reach by SSH.

    Without a verb, the terminal UI opens.
    """
    ctx.obj = inventory_path
    if is_unlocked and read_only:
        raise click.UsageError("--write and --read-only contradict each other")
    reason = "it was opened with --read-only, as `odctl web` does without --write"
    # A verb that opens the UI finds them here.
    ctx.meta[UI_OPTIONS] = options = UiOptions(
        is_unlocked=is_unlocked, is_ascii=is_ascii, theme=theme, lock_reason=reason if read_only else ""
    )
    if ctx.invoked_subcommand is None:
        from odctl.tui.responsive import collect_rarely

        collect_rarely()
        from odctl.tui.app import run_app

        run_app(inventory_path, options)
