"""A gateway process with ranks behind it, as an agent would run them: real processes, certificates, sockets."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import ErrorDetail, FleetError
from agent.facts.model import FamilySpec, ModelSpec, RopeSpec
from agent.planner.plan import Serving
from agent.wire.gateway import (
    AttachBackend,
    BackendRef,
    BackendStatus,
    CheckReport,
    GatewayConfig,
    GatewayStatus,
    RankEndpoint,
)
from agent.wire.rank import SamplingParams, TlsFiles
from odctl.pki.authority import ClusterAuthority, LeafIdentity, open_authority
from tests.agent.api.rank_stand_in import StandInConfig, next_token
from tests.agent.serving.tokenizer import BOS, EOS, SPECIAL_TOKENS, VOCAB_SIZE, small_tokenizer, write_tokenizer

CLUSTER, HOST = "lab", "gpu01"
DEADLINE_S = 20.0
MODEL = ModelSpec(
    name="stand-in",
    family=FamilySpec(name="llama", architecture="LlamaForCausalLM"),
    num_layers=4,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    vocab_size=VOCAB_SIZE,
    max_context=512,
    rms_norm_eps=1e-5,
    rope=RopeSpec(theta=10000.0),
    tie_word_embeddings=False,
    dtype="float32",
    num_parameters=1_234_567,
    bos_token_id=BOS,
    eos_token_ids=(EOS,),
    digest="d" * 64,
)
SERVING = Serving(context=256, batch=8, dtype="float32", prefill_chunk=32, queue=64)


def wait_until(holds: Callable[[], Any], what: str, *, timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of `holds`, within a deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)
    return value


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """What the stand-ins generate from a prompt at temperature 0, computed here and not by any gateway."""
    history = list(prompt)
    for _ in range(count):
        history.append(
            next_token(history, SamplingParams(), vocab_size=VOCAB_SIZE, first_token=len(SPECIAL_TOKENS))
        )
    return history[len(prompt) :]


def text_of(generated: Sequence[int]) -> str:
    """The text that clients get of generated tokens: bytes that never became a character are left out."""
    tokenizer = small_tokenizer()
    return str(tokenizer.decode(list(generated))).rstrip("\ufffd")


def issue_leaf(directory: Path, *, host: str = HOST, authority: ClusterAuthority | None = None) -> TlsFiles:
    """A leaf for `host` as bootstrap makes it: key on the host, signed by the cluster's own CA."""
    authority = authority or open_authority(CLUSTER, directory=directory / "ca")
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
        .sign(key, hashes.SHA256())
    )
    leaf = authority.issue(
        request.public_bytes(serialization.Encoding.PEM),
        LeafIdentity(cluster=CLUSTER, host=host, cluster_address="127.0.0.1"),
        now=datetime.now(UTC),
    )
    files = TlsFiles(
        ca=str(directory / "ca.pem"), cert=str(directory / f"{host}.pem"), key=str(directory / f"{host}.key")
    )
    Path(files.ca).write_bytes(authority.ca_pem)
    Path(files.cert).write_bytes(leaf)
    Path(files.key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


class StandInRank:
    """One stand-in process."""

    def __init__(self, directory: Path, config: StandInConfig) -> None:
        self.config = config
        path = directory / f"{config.rank_id}-g{config.generation}.json"
        path.write_bytes(msgspec.json.encode(config))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.api.rank_stand_in", str(path)], stdin=subprocess.PIPE
        )

    @property
    def endpoint(self) -> RankEndpoint:
        port_file = Path(self.config.port_file)
        wait_until(port_file.exists, f"{self.config.rank_id} listens")
        return RankEndpoint(
            rank_id=self.config.rank_id, host=HOST, address="127.0.0.1", port=int(port_file.read_text())
        )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=DEADLINE_S)


class Rig:
    """Directory, certificates, model files, ranks and one gateway; everything is gone after `close`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tls = issue_leaf(directory)
        self.model_dir = directory / "model"
        write_tokenizer(self.model_dir)
        self.socket = directory / "gateway.sock"
        self.log = directory / "gateway.log"
        self.gateway: subprocess.Popen[bytes] | None = None
        self.base_url = ""
        self._cleanup = contextlib.ExitStack()

    def start_gateway(self, *, listen: str = "127.0.0.1:0", api_keys: tuple[str, ...] = ()) -> None:
        config = GatewayConfig(
            cluster=CLUSTER,
            host=HOST,
            listen=listen,
            socket=str(self.socket),
            agent_socket=str(self.directory / "agent.sock"),
            tls=self.tls,
            api_keys=api_keys,
        )
        path = self.directory / "gateway.json"
        path.write_bytes(msgspec.json.encode(config))
        with self.log.open("wb") as log:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "agent.api", str(path)], stdout=log, stderr=log, start_new_session=True
            )
        self._cleanup.callback(self._end, self.gateway)
        wait_until(self._answers, f"the gateway answers: {self.log}")
        self.base_url = f"http://{self.status().listen}"

    def stand_ins(
        self,
        *,
        generation: int = 1,
        deployment: str = "demo",
        num_stages: int = 2,
        num_replicas: int = 1,
        **changes: Any,
    ) -> list[list[StandInRank]]:
        """Start stand-in ranks, one a stage: `[replica][stage]`."""
        return [
            [
                self._stand_in(f"r{replica}s{stage}t0", deployment, generation, stage == num_stages - 1, changes)
                for stage in range(num_stages)
            ]
            for replica in range(num_replicas)
        ]

    def attach(
        self,
        ranks: Sequence[Sequence[StandInRank]],
        *,
        generation: int = 1,
        deployment: str = "demo",
        serving: Serving = SERVING,
        model: ModelSpec = MODEL,
    ) -> BackendStatus:
        endpoints = tuple(tuple((rank.endpoint,) for rank in replica) for replica in ranks)
        return self.attach_endpoints(
            endpoints, generation=generation, deployment=deployment, serving=serving, model=model
        )

    def attach_endpoints(
        self,
        endpoints: tuple[tuple[tuple[RankEndpoint, ...], ...], ...],
        *,
        generation: int,
        deployment: str,
        serving: Serving,
        model: ModelSpec,
    ) -> BackendStatus:
        body = AttachBackend(
            deployment=deployment,
            generation=generation,
            plan_hash=f"plan{generation}",
            model=model,
            model_dir=str(self.model_dir),
            replicas=endpoints,
            serving=serving,
        )
        return msgspec.msgpack.decode(self.control("attach", body), type=BackendStatus)

    def check(self, generation: int = 1, deployment: str = "demo") -> CheckReport:
        ref = BackendRef(deployment=deployment, generation=generation)
        return msgspec.msgpack.decode(self.control("check", ref), type=CheckReport)

    def tell(self, verb: str, generation: int = 1, *, deployment: str = "demo", drain_s: float = 5.0) -> None:
        self.control(verb, BackendRef(deployment=deployment, generation=generation, drain_s=drain_s))

    def serve(self, **changes: Any) -> list[list[StandInRank]]:
        """Gateway, stand-ins, attached and active: the usual beginning."""
        serving = changes.pop("serving", SERVING)
        if self.gateway is None:
            self.start_gateway()
        ranks = self.stand_ins(**changes)
        generation, deployment = changes.get("generation", 1), changes.get("deployment", "demo")
        self.attach(ranks, generation=generation, deployment=deployment, serving=serving)
        self.tell("activate", generation, deployment=deployment)
        return ranks

    def control(self, verb: str, body: msgspec.Struct) -> bytes:
        """Raises FleetError with what the gateway says."""
        with self.client() as client:
            response = client.post(f"/control/{verb}", content=msgspec.msgpack.encode(body))
        if response.status_code >= 400:
            raise FleetError.from_detail(msgspec.msgpack.decode(response.content, type=ErrorDetail))
        return response.content

    def status(self) -> GatewayStatus:
        with self.client() as client:
            response = client.get("/control/status").raise_for_status()
        return msgspec.msgpack.decode(response.content, type=GatewayStatus)

    def backend(self, generation: int = 1, deployment: str = "demo") -> BackendStatus:
        [found] = [
            each
            for each in self.status().backends
            if (each.deployment, each.generation) == (deployment, generation)
        ]
        return found

    def sent_params(self, name: str = "demo-r0s1t0-g1") -> list[dict[str, Any]]:
        """Sampling parameters of all sequences that a rank was sent, in order.

        Of a rank that answers: it writes a step down before its answer can reach anybody. Others need not have
        seen the step yet when a client has its answer.
        """
        steps = [msgspec.json.decode(line) for line in (self.directory / f"{name}.steps").read_bytes().splitlines()]
        return [part[4] for step in steps for part in step["slices"] if part[4] is not None]

    def client(self) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://gateway", timeout=DEADLINE_S
        )

    def close(self) -> None:
        self._cleanup.close()

    def _stand_in(
        self, rank_id: str, deployment: str, generation: int, answers: bool, changes: dict[str, Any]
    ) -> StandInRank:
        name = f"{deployment}-{rank_id}-g{generation}"
        settings = {"step_s": 0.0, **changes}
        config = StandInConfig(
            deployment=deployment,
            generation=generation,
            rank_id=rank_id,
            answers=answers,
            tls=self.tls,
            vocab_size=VOCAB_SIZE,
            first_token=len(SPECIAL_TOKENS),
            port_file=str(self.directory / f"{name}.port"),
            log_file=str(self.directory / f"{name}.steps"),
            **settings,
        )
        rank = StandInRank(self.directory, config)
        self._cleanup.callback(self._end, rank.process)
        return rank

    def _answers(self) -> bool:
        assert self.gateway is not None
        assert self.gateway.poll() is None, f"the gateway ended: {self.log.read_text()}"
        # httpx leaves a socket to the garbage collector when nobody listens.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(self.socket)) != 0:
                return False
        self.status()
        return True

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(timeout=6)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def open_rig(directory: Path) -> Iterator[Rig]:
    rig = Rig(directory)
    try:
        yield rig
    finally:
        rig.close()
