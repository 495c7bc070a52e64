"""What quantisation costs a model: its perplexity on held text, and how far its logits agree with the plain ones.

Perplexity is exp of the mean negative log-likelihood of the next token; agreement is that of the likeliest token;
the divergence is KL(plain || quantised) of the next token's distribution. One model is held at a time.

Shapes: N positions of the text, W positions of a window, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from agent.engine.batch import lay_out
from agent.engine.decoder import Decoder
from agent.engine.held_text import HELD_TEXT
from agent.engine.kv_cache import KvCache
from agent.engine.memory import check_memory
from agent.engine.weights import load_weights
from agent.errors import FleetError
from agent.facts.model import ModelSpec, Quantisation
from agent.models.files import header_path
from agent.models.gguf_header import read_gguf_metadata
from agent.planner.layout import cut_shares, extent_of
from agent.planner.memory import activation_bytes, kv_layer_bytes, runtime_bytes
from agent.planner.plan import BLOCK_TOKENS, Serving
from agent.planner.shards import ShardExtent, shard_weight_bytes
from agent.serving.gguf_tokens import gguf_tokens
from agent.serving.tokens import ModelTokens
from agent.wire.accuracy import AccuracyReport, CheckConfig, PrecisionReport
from agent.wire.rank import SamplingParams, SequenceSlice, Step

log = logging.getLogger(__name__)

WINDOW_TOKENS = 256
MAX_TOKENS = 1024
MAX_REFERENCE_BYTES = 512 << 20
"""Of the plain model's log-probabilities, which stay until the end: a large vocabulary gets fewer positions."""
MIN_TOKENS = 32
_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROWS_AT_ONCE = 64
_CPU = torch.device("cpu")


def measure(config: CheckConfig) -> AccuracyReport:
    """Plain first, then each quantisation. Raises FleetError E804 when one does not fit, E710 without tokens."""
    spec = config.model
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    tokens = _read_tokens(spec, Path(config.model_dir))
    plain: list[Tensor] = []
    reports: list[PrecisionReport] = []
    wanted: tuple[Quantisation, ...] = ("none", *(each for each in config.quantisations if each != "none"))
    with torch.inference_mode():
        for quantisation in dict.fromkeys(wanted):
            log.info("measuring", extra={"model": spec.name, "quantisation": quantisation, "tokens": len(tokens)})
            reports.append(_measure_one(config, quantisation, tokens, plain))
    return AccuracyReport(
        host=config.host,
        model=spec.name,
        dtype=config.dtype,
        num_tokens=sum(len(window) - 1 for window in _windows(tokens)),
        precisions=tuple(reports),
    )


def _measure_one(
    config: CheckConfig, quantisation: Quantisation, tokens: list[int], plain: list[Tensor]
) -> PrecisionReport:
    """`plain` gathers the log-probabilities of each block of rows the first time, and is compared with later."""
    begun = time.perf_counter()
    spec, is_plain = config.model, quantisation == "none"
    extent = extent_of(spec, (0, spec.num_layers), cut_shares(spec, (spec.num_kv_heads,))[0])
    _check_memory(config, extent, quantisation, reference_bytes=4 * spec.vocab_size * len(tokens))
    model = _LoadedModel(config, extent, quantisation)
    loss = divergence = 0.0
    agreed = count = block = 0
    for window in _windows(tokens):
        hidden_WD = model.hidden(window[:-1])
        for begin in range(0, len(window) - 1, _ROWS_AT_ONCE):
            logits_RV = model.decoder.logits(hidden_WD[begin : begin + _ROWS_AT_ONCE]).float()
            log_probs_RV = torch.log_softmax(logits_RV, dim=-1)
            if is_plain:
                plain.append(log_probs_RV)
            right = torch.tensor(window[1:][begin : begin + _ROWS_AT_ONCE])
            loss -= float(log_probs_RV.gather(1, right[:, None]).sum())
            agreed += int((log_probs_RV.argmax(-1) == plain[block].argmax(-1)).sum())
            divergence += float((plain[block].exp() * (plain[block] - log_probs_RV)).sum())
            count += len(right)
            block += 1
    return PrecisionReport(
        quantisation=quantisation,
        weight_bytes=model.weight_bytes,
        perplexity=float(torch.tensor(loss / count, dtype=torch.float64).exp()),
        top1_agreement=agreed / count,
        mean_kl=max(0.0, divergence / count),
        measured_s=time.perf_counter() - begun,
    )


class _LoadedModel:
    """A whole model in one precision, without links."""

    def __init__(self, config: CheckConfig, extent: ShardExtent, quantisation: Quantisation) -> None:
        spec, kind = config.model, _KINDS[config.dtype]
        weights = load_weights(
            spec,
            extent,
            shard_file="",
            model_dir=config.model_dir,
            kind=kind,
            device=_CPU,
            on_read=lambda _: None,
            quantisation=quantisation,
        )
        self.weight_bytes = weights.num_bytes
        self.decoder = Decoder(
            spec, extent, weights, context=WINDOW_TOKENS, kind=kind, device=_CPU, on_layer=lambda: None
        )
        self._kind = kind
        self._cache = KvCache(
            num_layers=spec.num_layers,
            batch=1,
            context=WINDOW_TOKENS,
            num_blocks=-(-WINDOW_TOKENS // BLOCK_TOKENS),
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            kind=kind,
            device=_CPU,
        )

    def hidden(self, tokens: list[int]) -> Tensor:
        """Hidden states after the last layer, W x D."""
        blocks = list(range(self._cache.num_blocks))
        piece = SequenceSlice(
            slot=0, start=0, tokens=tokens, samples=False, params=SamplingParams(), new_blocks=blocks
        )
        self._cache.admit([piece])
        step = Step(step_id=1, slices=[piece])
        batch = lay_out(step, self._cache.tables, kind=self._kind, device=_CPU)
        hidden_WD = self.decoder.embed(batch.tokens, _unreduced)
        return self.decoder.run_layers(hidden_WD, batch, self._cache, _unreduced)


def _read_tokens(spec: ModelSpec, model_dir: Path) -> list[int]:
    """As much of the held text as there is room for the plain model's log-probabilities."""
    most = min(MAX_TOKENS, MAX_REFERENCE_BYTES // (4 * spec.vocab_size))
    header = header_path(model_dir)
    tokenizer = (
        ModelTokens.load(model_dir)
        if header is None
        else gguf_tokens(read_gguf_metadata(header), eos_token_ids=spec.eos_token_ids)
    )
    encoded = tokenizer.encode(HELD_TEXT.replace("\n", " "), adds_special=True)
    tokens = list(encoded[:most])
    if len(tokens) < MIN_TOKENS:
        raise FleetError("E710", f"the tokenizer of {spec.name} makes only {len(tokens)} tokens of the held text")
    return tokens


def _windows(tokens: list[int]) -> list[list[int]]:
    """Pieces of the text that are predicted on their own; a rest too short to be one is left out."""
    windows = [tokens[begin : begin + WINDOW_TOKENS] for begin in range(0, len(tokens), WINDOW_TOKENS)]
    return [window for window in windows if len(window) >= MIN_TOKENS]


def _check_memory(
    config: CheckConfig, extent: ShardExtent, quantisation: Quantisation, *, reference_bytes: int
) -> None:
    spec = config.model
    serving = Serving(context=WINDOW_TOKENS, batch=_ROWS_AT_ONCE, dtype=config.dtype, prefill_chunk=WINDOW_TOKENS)
    needed_bytes = (
        shard_weight_bytes(spec, extent, config.dtype, quantisation)
        + spec.num_layers * kv_layer_bytes(spec, spec.num_kv_heads, serving) // serving.batch
        + activation_bytes(spec, extent, serving, "cpu")
        + runtime_bytes("cpu")
        + reference_bytes
    )
    try:
        check_memory(_CPU, needed_bytes)
    except FleetError as error:
        kept = config.dtype if quantisation == "none" else quantisation
        raise FleetError(
            "E804",
            f"{spec.name} in {kept} cannot be checked on {config.host}: {error.message}",
            hint="free memory there, or name another host that has the model with --host",
            host=config.host,
        ) from error


def _unreduced(partial: Tensor) -> Tensor:
    return partial
