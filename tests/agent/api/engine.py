"""A gateway with real engine ranks behind it, and the model in transformers as witness."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.facts.model import ModelSpec
from agent.models.spec import read_spec
from agent.planner.plan import Serving
from agent.planner.shards import ShardExtent
from agent.wire.gateway import RankEndpoint
from agent.wire.rank import GetStatus
from tests.agent.api.rig import HOST, Rig, open_rig
from tests.agent.engine.models import Reference
from tests.agent.engine.processes import ProcessRank, link, start_ranks
from tests.agent.engine.rendezvous import serve_rendezvous
from tests.agent.engine.threads import plan_links, rank_config
from tests.agent.serving.tokenizer import BOS, CHAT_TEMPLATE, EOS, VOCAB_SIZE, write_tokenizer

Stages = tuple[tuple[ShardExtent, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Served:
    rig: Rig
    ranks: list[ProcessRank]
    reference: Reference


def write_model(path: Path, *, chat_template: str = CHAT_TEMPLATE, max_context: int = 512) -> Reference:
    """A seeded random Llama with the test tokenizer's vocabulary."""
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=88,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=max_context,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(path)
    write_tokenizer(path, chat_template=chat_template)
    model.train(mode=False)
    return Reference(path=path, spec=read_spec(path), model=model, _generated={})


@contextlib.contextmanager
def serve_model(
    cut: Callable[[ModelSpec], Stages], *, serving: Serving, chat_template: str = CHAT_TEMPLATE
) -> Iterator[Served]:
    """A process for each rank that `cut` makes of the model, active as `demo`."""
    with tempfile.TemporaryDirectory(prefix="gw-") as directory, open_rig(Path(directory)) as rig:
        reference = write_model(rig.model_dir, chat_template=chat_template, max_context=max(512, serving.context))
        spec = reference.spec
        stages = cut(spec)
        configs = [
            msgspec.structs.replace(
                rank_config(
                    spec,
                    extent,
                    folder=rig.directory,
                    model_dir=rig.model_dir,
                    stage=number,
                    tensor_index=index,
                    context=serving.context,
                    batch=serving.batch,
                    kv_blocks=serving.kv_blocks,
                    is_exact=serving.exact,
                ),
                host=HOST,
                deployment="demo",
                tls=rig.tls,
            )
            for number, extents in enumerate(stages)
            for index, extent in enumerate(extents)
        ]
        with (
            serve_rendezvous(rig.directory / "agent.sock"),
            start_ranks(configs, rig.directory) as ranks,
        ):
            statuses = link(ranks, plan_links(stages, generation=1))
            assert {status.state for status in statuses.values()} == {"linked"}
            endpoints = iter(
                RankEndpoint(
                    rank_id=rank.config.rank_id,
                    host=HOST,
                    address="127.0.0.1",
                    port=rank.ask(GetStatus()).step_port,
                )
                for rank in ranks
            )
            rig.start_gateway()
            rig.attach_endpoints(
                (tuple(tuple(next(endpoints) for _ in extents) for extents in stages),),
                generation=1,
                deployment="demo",
                serving=serving,
                model=spec,
            )
            report = rig.check()
            assert (report.is_ok, report.reason) == (True, "")
            rig.tell("activate")
            yield Served(rig=rig, ranks=ranks, reference=reference)
