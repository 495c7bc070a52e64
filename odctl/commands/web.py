"""`odctl web`: the terminal UI in a browser."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from odctl.result import Result, render, run_command

DEFAULT_PORT = 7117


@click.command("web")
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: any.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--write", "writes", is_flag=True, help="Allow changes. Without it no tab can be unlocked.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the token in a file, made when it is not there. Without it, a new one each time.",
)
@click.option("--tabs", type=click.IntRange(1, 64), default=4, show_default=True, help="Open at once, at most.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="Another address that browsers reach it by, as of a proxy: https://lab.example.",
)
@click.option("--allow-remote", is_flag=True, help="Let --host be an address that other machines reach.")
@click.option("--json", "as_json", is_flag=True, help="The address as JSON, and another document at the end.")
@click.pass_context
def command(context: click.Context, /, as_json: bool, **options: Any) -> None:
    """Serve the UI to browsers on this machine, until Ctrl-C.

    Prints an address with a token in it; whoever has the token has the UI. From elsewhere, reach it through SSH:
    ssh -L 7117:127.0.0.1:7117 THIS-MACHINE.
    """
    run_command(lambda: web(context.obj, looks=_look_flags(context), as_json=as_json, **options), as_json=as_json)


def web(
    inventory_path: str,
    *,
    port: int,
    host: str,
    writes: bool,
    token_file: Path | None,
    tabs: int,
    origins: tuple[str, ...],
    allow_remote: bool,
    looks: Sequence[str],
    as_json: bool,
) -> Result:
    """`looks`: flags of `odctl` for each tab.

    Raises FleetError: E1xx for a bad inventory, token file or address, E902 and E903 when it cannot serve.
    """
    import asyncio

    from agent.errors import FleetError
    from odctl.inventory import load_inventory
    from odctl.web.access import BAD_ACCESS, is_loopback, make_access
    from odctl.web.token_file import new_token, read_token

    inventory = load_inventory(inventory_path)
    if not is_loopback(host) and not allow_remote:
        raise FleetError(
            BAD_ACCESS,
            f"--host {host} would carry the UI, and its token, over the network in plain HTTP",
            hint=f"reach it by `ssh -L {port}:127.0.0.1:{port}`; or add --allow-remote, behind a proxy with TLS",
        )
    try:
        from odctl.web.server import Settings, serve, tab_argv
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"aiohttp", "textual_serve"}:
            raise
        raise FleetError(
            "E903", f"the browser's part of odctl is not installed ({error.name})", hint="pip install 'odctl[web]'"
        ) from error

    token = read_token(token_file) if token_file is not None else new_token()
    settings = Settings(
        access=make_access(token, listen=host, origins=origins),
        # What a tab may not do is refused in its own process, whatever the browser sends.
        argv=tab_argv(
            sys.executable,
            str(Path(inventory_path).absolute()),
            ("--write" if writes else "--read-only", *looks),
        ),
        cluster=inventory.cluster,
        max_tabs=tabs,
    )

    def ready(bound_port: int) -> None:
        shown_host = f"[{host}]" if ":" in host else host
        shown_token = token if token_file is None else f"<the token in {token_file}>"
        url = f"http://{shown_host}:{bound_port}/?token={shown_token}"
        address = Result(kind="web", data={"url": url, "port": bound_port, "is_read_only": not writes}, prose=url)
        sys.stdout.write(render(address, as_json=as_json))
        sys.stdout.flush()
        tell("changes are allowed" if writes else "read-only; --write allows changes")
        tell("Ctrl-C ends it, and every tab")

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    asyncio.run(serve(settings, host=host, port=port, ready=ready, tell=tell))
    return Result(kind="web-end", data={"cluster": inventory.cluster}, prose="")


def _look_flags(context: click.Context) -> list[str]:
    """What `odctl --ascii --theme NAME web` says of looks holds for every tab."""
    given = context.find_root().params
    flags = ["--ascii"] if given.get("is_ascii") else []
    return [*flags, "--theme", given["theme"]] if given.get("theme") else flags
