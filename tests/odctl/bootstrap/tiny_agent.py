"""A release that answers the handshake and nothing else: a stand-in for tests of bootstrap's own machinery.

It is a real process with a real socket, started by the real keeper; only the agent's other work is missing.
`broken` makes a release whose agent starts and dies, as a bad upgrade would.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import agent
from odctl.bootstrap.bundle import Bundle, make_bundle

_MAIN = """
import json, os, signal, socket, sys, time
from pathlib import Path

VARIANT = {variant!r}
prefix = Path(sys.argv[sys.argv.index("--prefix") + 1])
if VARIANT == "broken":
    sys.exit("this release is broken on purpose")
config = json.loads((prefix / "etc" / "agent.json").read_text())
pid_path, socket_path = prefix / "run" / "agent.pid", prefix / "run" / "agent.sock"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def pack(value):
    if isinstance(value, bool):
        return b"\\xc3" if value else b"\\xc2"
    if isinstance(value, int):
        return b"\\xd3" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, float):
        import struct
        return b"\\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"\\xda" + len(data).to_bytes(2, "big") + data
    return bytes([0x80 | len(value)]) + b"".join(pack(key) + pack(each) for key, each in value.items())


body = pack({{
    "host": config["host"], "cluster": config["cluster"], "release": config["release"], "protocol": 1,
    "pid": os.getpid(), "boot_id": "tiny", "started_at_s": time.time(), "is_degraded": config["is_degraded"],
}})
head = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/msgpack\\r\\nconnection: close\\r\\n"
socket_path.unlink(missing_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(socket_path))
listener.listen()
pid_path.write_text(str(os.getpid()))
try:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(head + b"content-length: %d\\r\\n\\r\\n" % len(body) + body)
finally:
    pid_path.unlink(missing_ok=True)
    socket_path.unlink(missing_ok=True)
"""


def tiny_bundle(directory: Path, variant: str = "one") -> Bundle:
    """A bundle of the tiny agent with the real keeper, launcher and key maker; each variant is another release."""
    package = directory / variant / "agent"
    package.mkdir(parents=True)
    real = Path(agent.__file__).parent
    (package / "__init__.py").write_text(f'VARIANT = "{variant}"\n')
    (package / "__main__.py").write_text(_MAIN.format(variant=variant))
    for name in ("keeper.sh", "launch.sh", "tls_request.py"):
        shutil.copy(real / name, package / name)
    return make_bundle(package)
