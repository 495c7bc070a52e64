"""`odctl models`: what is where on the fleet; and for models on this machine: check, make-demo, push."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.facts.model import Dtype, ModelSpec, Quantisation
from agent.wire.accuracy import AccuracyReport
from agent.wire.agent import ModelHolding
from odctl.result import ExitCode, Result, run_command

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
DEFAULT_DEMO_DIR = "demo-model"
MEASURE_TIMEOUT_S = 1900.0
"""A little more than a host allows itself, so that its reason is heard."""
LEAST_DIGEST_CHARS = 8


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """`unreachable` names the hosts that gave no answer, and why."""

    models: tuple[ModelHolding, ...]
    unreachable: dict[str, ErrorDetail]


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """One local directory. `spec` comes without its tensors, and is None when `problem` says why."""

    path: str
    spec: ModelSpec | None
    size_bytes: int
    num_files: int
    digest: str
    problem: ErrorDetail | None
    quantisation: str
    """GGUF's name of what most of its weights are stored as; empty: they are not quantised."""
    remarks: tuple[str, ...]


@click.group("models", invoke_without_command=True)
@_AS_JSON
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List what models the fleet has; check, push or make one."""
    if ctx.invoked_subcommand is None:
        run_command(lambda: list_models(ctx.obj), as_json=as_json)


@command.command("check")
@click.argument("model")
@click.option("--hash", "with_digest", is_flag=True, help="Also read all files and print the model's digest.")
@click.option("--quantisation", default="", help="Measure what these cost on a host: int8, or int8,int4,fp8.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="What quantised weights are held against.",
)
@click.option("--host", default="", help="Host that has the model and measures. Default: the first that has it.")
@_AS_JSON
@click.pass_obj
def check_command(
    inventory_path: str,
    /,
    *,
    model: str,
    with_digest: bool,
    quantisation: str,
    dtype: str,
    host: str,
    as_json: bool,
) -> None:
    """Say whether the model directory MODEL can be run, and what it is.

    With --quantisation MODEL is a model that a host of the fleet has (name, path or digest), and that host measures
    perplexity and how far logits agree with the plain model's.
    """
    if quantisation:
        run_command(
            lambda: measure_model(inventory_path, model, quantisation.split(","), dtype=dtype, host=host),
            as_json=as_json,
        )
    else:
        run_command(lambda: check_model(Path(model), with_digest=with_digest), as_json=as_json)


@command.command("make-demo")
@click.argument("path", type=click.Path(path_type=Path), default=DEFAULT_DEMO_DIR)
@click.option("--family", default="llama", show_default=True, help="llama, mistral, qwen2 or qwen3.")
@click.option("--layers", default=8, show_default=True)
@click.option("--hidden", default=256, show_default=True, help="Hidden size, a multiple of 64.")
@click.option("--vocab", default=4096, show_default=True, help="Tokens in the vocabulary.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True
)
@click.option("--steps", default=150, show_default=True, help="Training steps; more make better text.")
@click.option("--seed", default=0, show_default=True)
@_AS_JSON
def make_demo_command(path: Path, as_json: bool, **choices: int | str) -> None:
    """Make a small model that speaks, in about a minute, without torch or a network.

    It learns from the documentation that Python ships, and is a real model of its family.
    """
    run_command(lambda: make_demo(path, choices), as_json=as_json)


@command.command("push")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("host")
@_AS_JSON
@click.pass_obj
def push_command(inventory_path: str, path: Path, host: str, as_json: bool) -> None:
    """Copy the model directory PATH to HOST, through SSH. Cut off, it goes on where it stood."""
    run_command(lambda: push_model(inventory_path, path, host), as_json=as_json)


def list_models(inventory_path: str) -> Result:
    """What every host of the inventory has. Exit 4 when no host answers, 5 when some do not."""
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet

    async def ask(fleet: Fleet, _: Inventory) -> dict[str, tuple[ModelHolding, ...] | FleetError]:
        return await fleet.get_all("/v1/models", tuple[ModelHolding, ...])

    return model_list_result(visit_fleet(inventory_path, ask))


def model_list_result(answers: dict[str, tuple[ModelHolding, ...] | FleetError]) -> Result:
    """The table of all answers, with the hosts that gave none named below it."""
    models: list[ModelHolding] = []
    unreachable: dict[str, ErrorDetail] = {}
    for host, answer in answers.items():
        if isinstance(answer, FleetError):
            unreachable[host] = answer.detail
        else:
            models += answer
    exit_code = ExitCode.OK
    if unreachable:
        exit_code = ExitCode.UNREACHABLE if len(unreachable) == len(answers) else ExitCode.PARTIAL
    listed = ModelList(models=tuple(models), unreachable=unreachable)
    return Result(kind="models", data=listed, prose=_list_prose(listed), exit_code=exit_code)


def check_model(path: Path, *, with_digest: bool = False) -> Result:
    """Spec, sizes and problems of a local model directory. Exit 1 when it cannot be run."""
    from agent.models.files import HEADER_FILE
    from agent.models.gguf_types import stored_quantisation
    from agent.models.manifest import model_parts, read_manifest
    from agent.models.spec import read_spec
    from odctl.model_source import cache_dir

    spec: ModelSpec | None = None
    problem: ErrorDetail | None = None
    digest = ""
    sizes: tuple[int, ...] = ()
    try:
        spec = read_spec(path)
        sizes = tuple(part.length for name, part in model_parts(path).items() if name != HEADER_FILE)
        if with_digest:
            digest = read_manifest(path, cache_dir=cache_dir()).digest
    except FleetError as error:
        problem = error.detail
    report = ModelReport(
        path=str(path),
        spec=msgspec.structs.replace(spec, tensors=()) if spec else None,
        size_bytes=sum(sizes),
        num_files=len(sizes),
        digest=digest,
        problem=problem,
        quantisation=stored_quantisation(spec) if spec else "",
        remarks=_remarks(path) if spec else (),
    )
    exit_code = ExitCode.ERROR if problem else ExitCode.OK
    return Result(kind="model", data=report, prose=report_prose(report), exit_code=exit_code)


def measure_model(
    inventory_path: str, model: str, quantisations: list[str], *, dtype: str, host: str = ""
) -> Result:
    """What quantisation costs, measured by a host that has the model. Raises E101, E701, E804."""
    from agent.wire.accuracy import CheckModel
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet

    try:
        wanted = msgspec.convert(quantisations, tuple[Quantisation, ...])
        kept_as = msgspec.convert(dtype, Dtype)
    except msgspec.ValidationError as error:
        raise FleetError(
            "E101", f"--quantisation {','.join(quantisations)}: {error}", hint="write --quantisation int8,int4"
        ) from error

    async def measure(fleet: Fleet, _: Inventory) -> AccuracyReport:
        answers = await fleet.get_all("/v1/models", tuple[ModelHolding, ...])
        whole = [
            holding
            for answer in answers.values()
            if not isinstance(answer, FleetError)
            for holding in answer
            if holding.is_complete
        ]
        holders = [held for held in whole if _is_named(held, model)]
        if not holders:
            known = ", ".join(sorted({f"{held.name} on {held.host}" for held in whole})) or "none"
            raise FleetError(
                "E701",
                f"no reachable host{f' named {host}' if host else ''} has `{model}` whole",
                hint=f"whole models: {known}; odctl models push brings one there",
            )
        held = holders[0]
        check = CheckModel(quantisations=wanted, digest=held.digest, path=held.path, dtype=kept_as)
        return await fleet.post(held.host, "/v1/check", check, AccuracyReport, timeout_s=MEASURE_TIMEOUT_S)

    report = visit_fleet(inventory_path, measure, hosts=(lambda _: [host]) if host else None)
    return Result(kind="accuracy", data=report, prose=accuracy_prose(report))


def _is_named(held: ModelHolding, wanted: str) -> bool:
    is_digest = len(wanted) >= LEAST_DIGEST_CHARS and held.digest.startswith(wanted)
    return wanted in (held.name, held.path) or is_digest


def accuracy_prose(report: AccuracyReport) -> str:
    """A table: what each way of keeping the matrices takes and costs."""
    rows = [("MATRICES", "WEIGHTS", "PERPLEXITY", "SAME TOKEN", "DIVERGENCE", "TOOK")]
    for precision in report.precisions:
        rows.append(
            (
                report.dtype if precision.quantisation == "none" else precision.quantisation,
                _size(precision.weight_bytes),
                f"{precision.perplexity:.3f}",
                f"{precision.top1_agreement:.1%}",
                f"{precision.mean_kl:.5f} nats",
                f"{precision.measured_s:.1f} s",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    title = f"{report.model} on {report.host}: {report.num_tokens} tokens of held text"
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, *(f"  {line}" for line in table)])


def make_demo(path: Path, choices: dict[str, int | str]) -> Result:
    """Write a demo model and report on it like `check`."""
    from rich.console import Console
    from rich.progress import Progress

    from odctl.demo_model import DemoChoices, write_demo_model

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("making a model", total=None)

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        write_demo_model(path, msgspec.convert(choices, DemoChoices), on_progress=show)
    return check_model(path)


def push_model(inventory_path: str, path: Path, host: str) -> Result:
    """Upload a local model to one host of the inventory. Raises E701 to E706 before anything is sent."""
    from agent.models.manifest import read_manifest
    from agent.planner.plan import ModelRef
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.model_source import cache_dir, push_model
    from odctl.session import visit_fleet

    manifest = read_manifest(path, cache_dir=cache_dir())
    ref = ModelRef(name=manifest.spec.name, path=str(path.resolve()), digest=manifest.digest)

    async def push(fleet: Fleet, _: Inventory) -> int:
        return await push_model(fleet, host, ref, manifest)

    sent = visit_fleet(inventory_path, push, hosts=lambda _: [host])
    said = f"sent {_size(sent)}" if sent else "was there already"
    return Result(
        kind="push",
        data={"host": host, "model": ref, "sent_bytes": sent},
        prose=f"{ref.name} ({ref.digest[:12]}) on {host}: {said}",
    )


def _remarks(path: Path) -> tuple[str, ...]:
    """What does not keep the model from running, and may still surprise."""
    from agent.models.files import header_path
    from agent.models.language_part import language_part_of
    from agent.models.spec import read_config

    header = header_path(path)
    if header is not None:
        return _gguf_remarks(path, header)
    remarks = []
    if language_part_of(read_config(path)) is not None:
        remarks.append("its language model alone is run: images and the like are left out")
    if not (path / "tokenizer.json").is_file():
        remarks.append("no tokenizer.json: it cannot be served until there is one")
    config = path / "tokenizer_config.json"
    has_template = (path / "chat_template.jinja").is_file() or (
        config.is_file() and b'"chat_template"' in config.read_bytes()
    )
    if not has_template:
        remarks.append("no chat template: chats are refused or put plainly, completions work")
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickles:
        remarks.append(f"ignored, since pickle is never loaded: {', '.join(pickles)}")
    return tuple(remarks)


def _gguf_remarks(path: Path, header: Path) -> tuple[str, ...]:
    from agent.models.files import read_ollama_text
    from agent.models.gguf_header import read_gguf_header

    metadata = read_gguf_header(header).metadata
    remarks = []
    if not isinstance(metadata.get("tokenizer.chat_template"), str):
        if read_ollama_text(path, "template"):
            remarks.append("its only chat template is Ollama's, in Go: put as the known format that it looks like")
        else:
            remarks.append("no chat template: chats are put plainly, completions work")
    kind = metadata.get("tokenizer.ggml.model", "none")
    pre = metadata.get("tokenizer.ggml.pre")
    remarks.append(f"tokenizer {kind}{f' ({pre})' if pre else ''}, from the file's metadata")
    return tuple(remarks)


def report_prose(report: ModelReport) -> str:
    if report.problem is not None:
        hint = f"\n  = {report.problem.hint}" if report.problem.hint else ""
        return f"✗ {report.path} cannot be run\n  {report.problem.code}: {report.problem.message}{hint}"
    spec = report.spec
    assert spec is not None, "a report has a spec or a problem"
    active = f" ({spec.num_active_parameters / 1e9:.3f} B for each token)" if spec.num_experts else ""
    rope = f"{spec.rope.kind} rope, theta {spec.rope.theta:g}"
    lines = [
        f"● {spec.name}  {spec.family.architecture}",
        f"  {spec.num_parameters / 1e9:.3f} B parameters{active} in {report.quantisation or spec.dtype}, "
        f"{_size(report.size_bytes)} in {report.num_files} files",
        f"  {spec.num_layers} layers, hidden {spec.hidden_size}, {_mlp_words(spec)}, "
        f"{spec.num_heads} heads of {spec.head_size}, {spec.num_kv_heads} KV heads",
        f"  vocabulary {spec.vocab_size}{', tied' if spec.tie_word_embeddings else ''}, "
        f"context {spec.max_context}, {rope}{_window_words(spec)}",
    ]
    if report.digest:
        lines.append(f"  digest {report.digest}")
    lines += [f"  note: {remark}" for remark in report.remarks]
    return "\n".join(lines)


def _mlp_words(spec: ModelSpec) -> str:
    """`MLP 14336`, or `8 experts of 14336, 2 for each token`, and what the layers without experts have."""
    if not spec.num_experts:
        return f"MLP {spec.intermediate_size}"
    words = f"{spec.num_experts} experts of {spec.expert_size}, {spec.experts_per_token} for each token"
    dense = len(spec.dense_layers)
    return f"{words} (MLP {spec.intermediate_size} in {dense} of {spec.num_layers} layers)" if dense else words


def _window_words(spec: ModelSpec) -> str:
    """`, sliding window 4096`, in how many layers, and their own rope."""
    if spec.sliding_window is None:
        return ""
    windowed = spec.num_layers - len(spec.full_layers)
    where = f" in {windowed} of {spec.num_layers} layers" if spec.full_layers else ""
    local = f" (theta {spec.local_rope.theta:g})" if spec.local_rope is not None else ""
    return f", sliding window {spec.sliding_window}{where}{local}"


def _list_prose(listed: ModelList) -> str:
    rows = [("HOST", "MODEL", "DIGEST", "SIZE", "STORED", "HELD", "PATH")]
    for model in listed.models:
        held = "broken" if model.trouble else "complete" if model.is_complete else _size(model.held_bytes)
        stored = model.quantisation or "-"
        digest, size = model.digest[:12] or "-", _size(model.size_bytes)
        rows.append((model.host, model.name, digest, size, stored, held, model.path))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not listed.models:
        lines = ["no models on the hosts that answered"]
    lines += [f"✗ {model.host}: {model.path}: {model.trouble}" for model in listed.models if model.trouble]
    lines += [f"✗ {host} unreachable: {error.message}" for host, error in listed.unreachable.items()]
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit, bytes_per_unit in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_per_unit:
            return f"{count / bytes_per_unit:.1f} {unit}"
    return f"{count} B"
