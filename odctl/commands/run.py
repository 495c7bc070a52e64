"""`odctl run MODEL "prompt"`: ask a deployed model through its gateway's unix socket; the answer streams."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from odctl.result import Result, run_command


@click.command("run")
@click.argument("name")
@click.argument("prompt", nargs=-1)
@click.option("--raw", is_flag=True, help="Complete the prompt as it is, without the model's chat template.")
@click.option("--system", default="", help="System message.")
@click.option("--max-tokens", type=int, default=None, help="Tokens at most. Default: until the model ends.")
@click.option("--temperature", type=float, default=None)
@click.option("--seed", type=int, default=None)
@click.option("--verbose", is_flag=True, help="Print counts and speeds at the end.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON, not a stream.")
@click.pass_obj
def command(inventory_path: str, /, name: str, prompt: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Ask deployment NAME; without PROMPT the question is read from stdin."""
    run_command(lambda: run(inventory_path, name, " ".join(prompt), as_json=as_json, **options), as_json=as_json)


def run(
    inventory_path: str,
    name: str,
    prompt: str,
    *,
    raw: bool = False,
    system: str = "",
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    verbose: bool = False,
    as_json: bool = False,
) -> Result:
    """Raises E110 for a name that is not deployed, E808 with the gateway's own words when it fails."""
    from odctl.chat import ChatRequest, stream_answer
    from odctl.deployments import read_deployments
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet

    text = prompt or sys.stdin.read()

    async def ask(fleet: Fleet, _inventory: Inventory) -> dict[str, Any]:
        status = (await read_deployments(fleet)).one(name).reachable_status()
        request = ChatRequest(
            model=status.name,
            prompt=text,
            system=system,
            is_raw=raw,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        pieces = []
        last: dict[str, Any] = {}
        async for piece, final in stream_answer(fleet, status, request):
            pieces.append(piece)
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
            last = final or last
        return {"text": "".join(pieces), **last}

    answer = visit_fleet(inventory_path, ask)
    prose = "\n"
    if verbose:
        speed = answer["eval_count"] / max(answer["eval_duration"], 1) * 1e9
        sys.stdout.write("\n")
        counts = {key: answer[key] for key in ("prompt_eval_count", "eval_count", "done_reason")}
        prose = f"{json.dumps(counts)}  {speed:.1f} tok/s\n"
    return Result(kind="answer", data=answer, prose=prose)
