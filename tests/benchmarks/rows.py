"""The rows of the table: what is compared with what, on the same bits and threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from odctl.demo_model.corpus import read_documents
from tests.benchmarks import measures
from tests.benchmarks.alternate import ROUNDS, Measured, alternate
from tests.benchmarks.commanded import commanded
from tests.benchmarks.llama_cpp import llama_bench, llama_server
from tests.benchmarks.models import BenchModel, bench_model, model_directory
from tests.benchmarks.ours import Deployed, NotAvailable, deployed
from tests.benchmarks.peers import Peers
from tests.integration.cluster import Cluster

ONE_HOST = ("--max-hosts", "1")
TWO_STAGES = ("--strategy", "pipeline", "--stages", "2", "--min-hosts", "2")
TWO_TENSOR_RANKS = ("--strategy", "tensor", "--tensor", "2", "--min-hosts", "2")
INT8 = ("--quantisation", "int8")
TOKENS_PER_S = "tokens/s"
PROMPT = 32
WARM_UP_PROMPT = 64


class Room(msgspec.Struct, frozen=True):
    """Where rows are measured."""

    peers: Peers
    cluster: Cluster
    folder: Path
    rounds: int = ROUNDS

    def alternate(
        self,
        unit: str,
        ours: Callable[[], float],
        other: Callable[[], float],
        *,
        is_warm: bool = False,
        note: str = "",
    ) -> Measured:
        return alternate(unit, ours, other, rounds=self.rounds, is_warm=is_warm, note=note)

    def model(self, name: str) -> BenchModel:
        return bench_model(self.peers, name)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """`goal` is the least ratio, or the largest where less is better; None: measured for its own sake."""

    name: str
    work: str
    other: str
    measure: Callable[[Room], Measured]
    goal: float | None = None
    less_is_better: bool = False

    def is_met(self, ratio: float) -> bool:
        assert self.goal is not None
        return ratio <= self.goal if self.less_is_better else ratio >= self.goal


@contextmanager
def both(
    room: Room, model: BenchModel, gguf: Path, *options: str, slots: int, context: int, splits: bool = False
) -> Iterator[tuple[Deployed, str]]:
    """Ours and llama-server with the same slots and context; with `splits` over RPC servers, layers as ours."""
    batch = ("--batch", str(slots), "--context", str(context))
    with deployed(room.cluster, model.directory, room.folder, *batch, *options) as ours:
        split: tuple[int, ...] = ()
        if splits:
            layers = ours.layers_of_stages
            if len(layers) == 1:
                # Tensor ranks share every layer; llama.cpp's RPC shares out whole ones.
                layers = (layers[0] // 2, layers[0] - layers[0] // 2)
            # The head counts as a layer there.
            split = (*layers[:-1], layers[-1] + 1)
        with llama_server(room.peers, gguf, slots=slots, context=context, split=split) as listen:
            yield ours, listen


def decode_row(
    model: str, tokens: int, *options: str, q8: bool = False, splits: bool = False
) -> Callable[[Room], Measured]:
    def measure(room: Room) -> Measured:
        files = room.model(model)
        gguf = files.q8_0 if q8 else files.bf16
        with both(room, files, gguf, *options, slots=1, context=512, splits=splits) as (ours, other):
            return room.alternate(
                TOKENS_PER_S,
                lambda: measures.decode(ours.listen, ours.model, prompt=PROMPT, tokens=tokens),
                lambda: measures.decode(other, model, prompt=PROMPT, tokens=tokens),
                note=_split_note(ours),
            )

    return measure


def prefill_row(
    model: str, prompt: int, *options: str, q8: bool = False, splits: bool = False
) -> Callable[[Room], Measured]:
    def measure(room: Room) -> Measured:
        files = room.model(model)
        gguf = files.q8_0 if q8 else files.bf16
        with both(room, files, gguf, *options, slots=1, context=prompt + 64, splits=splits) as (ours, other):
            for listen, name in ((ours.listen, ours.model), (other, model)):
                measures.prefill(listen, name, prompt=WARM_UP_PROMPT)
            return room.alternate(
                TOKENS_PER_S,
                lambda: measures.prefill(ours.listen, ours.model, prompt=prompt),
                lambda: measures.prefill(other, model, prompt=prompt),
                is_warm=True,
                note=_split_note(ours),
            )

    return measure


def streams_row(
    model: str, count: int, tokens: int, *options: str, splits: bool = False
) -> Callable[[Room], Measured]:
    def measure(room: Room) -> Measured:
        files = room.model(model)
        with both(room, files, files.bf16, *options, slots=count, context=256, splits=splits) as (ours, other):
            return room.alternate(
                TOKENS_PER_S,
                lambda: measures.streams(ours.listen, ours.model, count=count, prompt=16, tokens=tokens),
                lambda: measures.streams(other, model, count=count, prompt=16, tokens=tokens),
                note=_split_note(ours),
            )

    return measure


def engine_row(model: str, tokens: int, *, quantisation: str = "none") -> Callable[[Room], Measured]:
    """Without gateway and HTTP on either side: what of the row above is the engine's."""

    def measure(room: Room) -> Measured:
        files = room.model(model)
        gguf = files.bf16 if quantisation == "none" else files.q8_0
        with commanded("tests.benchmarks.in_process", str(files.directory), quantisation) as ours:
            return room.alternate(
                TOKENS_PER_S,
                lambda: ours.ask(measure="decode", tokens=tokens),
                lambda: llama_bench(room.peers, gguf, decode=tokens),
            )

    return measure


def transformers_row(model: str, what: str, *, tokens: int, batch: int = 1) -> Callable[[Room], Measured]:
    def measure(room: Room) -> Measured:
        files = room.model(model)
        batches = ("--batch", str(batch), "--context", str(max(512, tokens + 64)))
        with (
            deployed(room.cluster, files.directory, room.folder, *ONE_HOST, *batches) as ours,
            commanded("tests.benchmarks.transformers_side", str(files.directory)) as other,
        ):
            if what == "prefill":
                return room.alternate(
                    TOKENS_PER_S,
                    lambda: measures.prefill(ours.listen, ours.model, prompt=tokens),
                    lambda: other.ask(measure="prefill", tokens=tokens),
                )
            if batch == 1:
                return room.alternate(
                    TOKENS_PER_S,
                    lambda: measures.decode(ours.listen, ours.model, prompt=PROMPT, tokens=tokens),
                    lambda: other.ask(measure="decode", tokens=tokens),
                )
            return room.alternate(
                TOKENS_PER_S,
                lambda: measures.streams(ours.listen, ours.model, count=batch, prompt=16, tokens=tokens),
                lambda: other.ask(measure="decode", tokens=tokens, batch=batch),
            )

    return measure


def prompt_lookup(room: Room) -> Measured:
    """A prompt that holds what will be said: a beginning, the model's way on from it, and the beginning again."""
    files = room.model("copy")
    tokens = 96
    beginning = "Return a string that holds the names of all files in a directory.\n"
    options = (*ONE_HOST, "--batch", "1", "--context", "1024")
    with (
        deployed(room.cluster, files.directory, room.folder, *options, name="plain") as plain,
        deployed(
            room.cluster, files.directory, room.folder, *options, "--speculation", "prompt_lookup", name="lookup"
        ) as ours,
        llama_server(room.peers, files.bf16, slots=1, context=1024) as other,
    ):
        way_on = measures.answer_to(plain.listen, plain.model, beginning, tokens=2 * tokens).text
        text = f"{beginning}{way_on}\n{beginning}"
        said = measures.answer_to(ours.listen, ours.model, text, tokens=tokens).text
        alone = measures.answer_to(plain.listen, plain.model, text, tokens=tokens).text
        is_same = said == alone
        gain = room.alternate(
            TOKENS_PER_S,
            lambda: measures.decode_text(ours.listen, ours.model, text, tokens=tokens),
            lambda: measures.decode_text(plain.listen, plain.model, text, tokens=tokens),
        )
        found = room.alternate(
            TOKENS_PER_S,
            lambda: measures.decode_text(ours.listen, ours.model, text, tokens=tokens),
            lambda: measures.decode_text(other, "copy", text, tokens=tokens),
        )
    same = "the same tokens as ours without" if is_same else "NOT the same tokens as ours without"
    return msgspec.structs.replace(found, note=f"{same}, {gain.ratio:.2f} times as fast as ours without")


def draft_model(room: Room) -> Measured:
    """Ordinary text, of what both models have learnt from."""
    model, draft = (model_directory(room.peers, name) for name in ("copy", "copy-draft"))
    tokens = 96
    text = "\n".join(read_documents()[0])[:400]
    options = (*ONE_HOST, "--batch", "1", "--context", "1024")
    with (
        deployed(room.cluster, model, room.folder, *options, name="plain") as plain,
        deployed(room.cluster, model, room.folder, *options, "--draft", str(draft), name="drafted") as ours,
    ):
        said = measures.answer_to(ours.listen, ours.model, text, tokens=tokens).text
        is_same = said == measures.answer_to(plain.listen, plain.model, text, tokens=tokens).text
        found = room.alternate(
            TOKENS_PER_S,
            lambda: measures.decode_text(ours.listen, ours.model, text, tokens=tokens),
            lambda: measures.decode_text(plain.listen, plain.model, text, tokens=tokens),
        )
        right, proposed = ours.drafts(room.cluster)
    same = "the same tokens" if is_same else "NOT the same tokens"
    share = f"{right / proposed:.0%} of {proposed} guesses right" if proposed else "no guesses"
    cost = f"{ours.plan.draft.predicted_cost:.2f} of a token's time each as planned" if ours.plan.draft else ""
    return msgspec.structs.replace(found, note=f"{same}; {share}, {cost}")


def shared_prefix(room: Room) -> Measured:
    """Median time to the first token of 64 requests, 4 at a time: one prefix for all, against one for each."""
    files = room.model("100m")
    count, prefix, rest = 64, 1024, 16
    randomness = random.Random(7)
    with deployed(
        room.cluster, files.directory, room.folder, *ONE_HOST, "--batch", "8", "--context", "1280"
    ) as ours:

        def with_one_prefix() -> float:
            shared = [randomness.randint(measures.FIRST_TOKEN, measures.LAST_TOKEN) for _ in range(prefix)]
            prompts = [measures.prompt_of(prefix + rest, shared=shared) for _ in range(count)]
            return measures.first_token_s(ours.listen, ours.model, prompts, at_a_time=4, tokens=4)

        def with_many() -> float:
            prompts = [measures.prompt_of(prefix + rest) for _ in range(count)]
            return measures.first_token_s(ours.listen, ours.model, prompts, at_a_time=4, tokens=4)

        measures.prefill(ours.listen, ours.model, prompt=WARM_UP_PROMPT)
        return room.alternate("s to first token", with_one_prefix, with_many, is_warm=True)


def cached_shard(room: Room) -> Measured:
    """Until a rank has its weights ready to compute with, packed before, against reading the tensors."""
    files = room.model("1b")
    with commanded("tests.benchmarks.load_shard", str(files.directory)) as side:
        return room.alternate(
            "s to load", lambda: side.ask(measure="cached"), lambda: side.ask(measure="plain"), note="1b, bfloat16"
        )


def exact_cost(count: int) -> Callable[[Room], Measured]:
    def measure(room: Room) -> Measured:
        files = room.model("100m")
        options = (*ONE_HOST, "--batch", str(count), "--context", "256")
        with (
            deployed(room.cluster, files.directory, room.folder, *options, "--exact", name="exact") as ours,
            deployed(room.cluster, files.directory, room.folder, *options, name="plain") as plain,
        ):
            if count == 1:
                return room.alternate(
                    TOKENS_PER_S,
                    lambda: measures.decode(ours.listen, ours.model, prompt=PROMPT, tokens=64),
                    lambda: measures.decode(plain.listen, plain.model, prompt=PROMPT, tokens=64),
                )
            return room.alternate(
                TOKENS_PER_S,
                lambda: measures.streams(ours.listen, ours.model, count=count, prompt=16, tokens=32),
                lambda: measures.streams(plain.listen, plain.model, count=count, prompt=16, tokens=32),
            )

    return measure


def _split_note(ours: Deployed) -> str:
    layers = ours.layers_of_stages
    return f"layers {'/'.join(str(count) for count in layers)}" if len(layers) > 1 else ""


SERVER, RPC, HF = "llama.cpp's server", "llama.cpp RPC", "transformers"

ROWS = (
    Row(name="decode-bf16-1b", work="one stream, decode, bf16, 1b", other=f"{SERVER}, BF16", goal=0.97,
        measure=decode_row("1b", 16, *ONE_HOST)),
    Row(name="decode-bf16-1b-engine", work="the same, engine alone", other="llama-bench, BF16",
        measure=engine_row("1b", 16)),
    Row(name="decode-bf16-100m", work="one stream, decode, bf16, 100m", other=f"{SERVER}, BF16", goal=1.0,
        measure=decode_row("100m", 96, *ONE_HOST)),
    Row(name="decode-bf16-100m-engine", work="the same, engine alone", other="llama-bench, BF16",
        measure=engine_row("100m", 96)),
    Row(name="decode-int8-1b", work="one stream, decode, int8, 1b", other=f"{SERVER}, Q8_0", goal=1.0,
        measure=decode_row("1b", 24, *ONE_HOST, *INT8, q8=True)),
    Row(name="decode-int8-1b-engine", work="the same, engine alone", other="llama-bench, Q8_0",
        measure=engine_row("1b", 24, quantisation="int8")),
    Row(name="prompt-lookup", work="one stream, prompt-lookup, copying, bf16", other=f"{SERVER}, BF16, without",
        goal=1.6, measure=prompt_lookup),
    Row(name="draft-model", work="one stream, draft model, ordinary text, bf16", other="ours, without",
        measure=draft_model),
    Row(name="prefill-bf16", work="prefill 512, bf16, 1b", other=f"{SERVER}, BF16", goal=1.4,
        measure=prefill_row("1b", 512, *ONE_HOST)),
    Row(name="prefill-int8", work="prefill 512, int8, 1b", other=f"{SERVER}, Q8_0", goal=3.0,
        measure=prefill_row("1b", 512, *ONE_HOST, *INT8, q8=True)),
    Row(name="streams-16-100m", work="16 streams, one process, bf16, 100m", other=f"{SERVER}, 16 slots", goal=1.5,
        measure=streams_row("100m", 16, 32, *ONE_HOST)),
    Row(name="streams-16-1b", work="16 streams, one process, bf16, 1b", other=f"{SERVER}, 16 slots", goal=1.5,
        measure=streams_row("1b", 16, 12, *ONE_HOST)),
    Row(name="stages-stream-1", work="two stages over TLS, one stream, bf16, 1b", other=f"{RPC}, same split",
        goal=1.0, measure=decode_row("1b", 16, *TWO_STAGES, splits=True)),
    Row(name="stages-streams-8", work="two stages over TLS, 8 streams, bf16, 1b", other=f"{RPC}, 8 sequences",
        goal=1.8, measure=streams_row("1b", 8, 12, *TWO_STAGES, splits=True)),
    Row(name="stages-prefill-bf16", work="two stages over TLS, prefill 2048, bf16, 1b", other=f"{RPC}, BF16",
        goal=1.6, measure=prefill_row("1b", 2048, *TWO_STAGES, splits=True)),
    Row(name="stages-prefill-int8", work="two stages over TLS, prefill 2048, int8, 1b", other=f"{RPC}, Q8_0",
        goal=4.0, measure=prefill_row("1b", 2048, *TWO_STAGES, *INT8, q8=True, splits=True)),
    Row(name="tensor-prefill", work="two tensor ranks over TLS, prefill 512, bf16, 1b", other=f"{RPC}, BF16",
        goal=2.0, measure=prefill_row("1b", 512, *TWO_TENSOR_RANKS, splits=True)),
    Row(name="hf-decode-1b", work="one stream, decode, bf16, 1b", other=HF, goal=1.8,
        measure=transformers_row("1b", "decode", tokens=8)),
    Row(name="hf-decode-100m", work="one stream, decode, bf16, 100m", other=HF, goal=1.8,
        measure=transformers_row("100m", "decode", tokens=48)),
    Row(name="hf-prefill", work="prefill 512, bf16, 1b", other=HF, goal=1.8,
        measure=transformers_row("1b", "prefill", tokens=512)),
    Row(name="hf-streams-16", work="16 streams, one process, bf16, 100m", other=f"{HF}, a batch of 16", goal=1.8,
        measure=transformers_row("100m", "decode", tokens=32, batch=16)),
    Row(name="shared-prefix", work="64 requests sharing 1,024 tokens, TTFT, 100m", other="64 prefixes", goal=0.2,
        less_is_better=True, measure=shared_prefix),
    Row(name="cached-shard", work="loading a cached shard, warm page cache", other="plain safetensors load",
        goal=0.5, less_is_better=True, measure=cached_shard),
    Row(name="exact-stream-1", work="exact mode, one stream, bf16, 100m", other="ours, not exact",
        measure=exact_cost(1)),
    Row(name="exact-streams-16", work="exact mode, 16 streams, bf16, 100m", other="ours, not exact",
        measure=exact_cost(16)),
)  # fmt: skip

__all__ = ["ROWS", "NotAvailable", "Room", "Row"]
