"""Builds the peers that the engine is measured against, once, from the Python package registry alone.

The sdist of llama-cpp-python brings llama.cpp's whole source. Its libraries and tools (llama-server, llama-bench,
llama-batched-bench, llama-quantize, the RPC server) are compiled once, natively; the Python package is installed
around the same libraries. CMake and Ninja come from the registry too. A C++ compiler is the one thing asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.output import say

VERSION = "0.3.36"
TOOLS = ("llama-server", "llama-bench", "llama-batched-bench", "llama-quantize", "ggml-rpc-server")
TOOLCHAIN = ("cmake>=3.25", "ninja", "gguf>=0.17", "scikit-build-core[pyproject]>=0.9.2")
LIBRARIES = ("llama", "mtmd")
TILE_CONFIGURATION = "    _tile_loadconfig(&tc);"
KEPT_TILE_CONFIGURATION = '    asm volatile("" : : "m"(tc));\n' + TILE_CONFIGURATION
"""GCC 12 lets `_tile_loadconfig` read 8 of the 64 bytes and drops the stores to the others: its int8 kernels
then die of an invalid instruction on CPUs with AMX. The line before it makes the compiler keep them."""
DEFAULT_FOLDER = Path(__file__).parents[2] / ".bench"


@dataclass(frozen=True)
class Peers:
    """Where everything of the benchmarks lies; it is also a Python environment with `llama_cpp` and `gguf`."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def source(self) -> Path:
        return self.folder / "src" / f"llama_cpp_python-{VERSION}"

    @property
    def build(self) -> Path:
        return self.folder / "llama.cpp"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def tool(self, name: str) -> Path:
        return self.build / "bin" / name

    def is_built(self) -> bool:
        return (self.folder / f"built-{VERSION}").exists()


def the_peers() -> Peers:
    """ODCTL_BENCH_DIR, or `.bench` at the root of the tree."""
    return Peers(Path(os.environ.get("ODCTL_BENCH_DIR", DEFAULT_FOLDER)).absolute())


def build_peers(peers: Peers) -> None:
    """Does nothing where this version is built already. Raises SystemExit with the end of what a step said."""
    if peers.is_built():
        return
    if shutil.which("c++") is None:
        raise SystemExit("the peers are compiled: install a C++ compiler (Debian: apt-get install g++)")
    peers.folder.mkdir(parents=True, exist_ok=True)
    say(f"building llama.cpp of llama-cpp-python {VERSION} in {peers.folder} (ten minutes and more, once)")
    if not peers.python.exists():
        run(peers, sys.executable, "-m", "venv", str(peers.folder))
    pip = (str(peers.python), "-m", "pip")
    run(
        peers,
        *pip,
        "install",
        "--quiet",
        "cmake>=3.25",
        "ninja",
        "gguf>=0.17",
        "scikit-build-core[pyproject]>=0.9.2",
    )
    unpack_source(peers, pip)
    compile_tools(peers)
    # The package without its own second compilation: it loads the libraries that lie in llama_cpp/lib.
    run(
        peers,
        *pip,
        "install",
        "--quiet",
        "--no-build-isolation",
        str(peers.source),
        env={"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
    )
    link_libraries(peers)
    run(peers, str(peers.python), "-c", "import llama_cpp; llama_cpp.llama_backend_init()")
    (peers.folder / f"built-{VERSION}").touch()


def unpack_source(peers: Peers, pip: tuple[str, ...]) -> None:
    if peers.source.exists():
        return
    downloads = peers.folder / "src"
    archive = downloads / f"llama_cpp_python-{VERSION}.tar.gz"
    if not archive.exists():
        package = f"llama-cpp-python=={VERSION}"
        run(
            peers,
            *pip,
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            "--dest",
            str(downloads),
            package,
        )
    with tarfile.open(archive) as packed:
        packed.extractall(downloads, filter="data")
    kernels = peers.source / "vendor" / "llama.cpp" / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    text = kernels.read_text()
    assert text.count(TILE_CONFIGURATION) == 1, f"another {kernels.name} than that of {VERSION}"
    kernels.write_text(text.replace(TILE_CONFIGURATION, KEPT_TILE_CONFIGURATION))


def compile_tools(peers: Peers) -> None:
    cmake, ninja = str(peers.folder / "bin" / "cmake"), str(peers.folder / "bin" / "ninja")
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "BUILD_SHARED_LIBS": "ON",
        "GGML_NATIVE": "ON",
        "GGML_RPC": "ON",
        "LLAMA_OPENSSL": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        # Otherwise its web page is downloaded from elsewhere while building.
        "LLAMA_USE_PREBUILT_UI": "OFF",
    }
    source = str(peers.source / "vendor" / "llama.cpp")
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    run(peers, cmake, "-G", "Ninja", "-S", source, "-B", str(peers.build), *defines)
    jobs = str(os.cpu_count() or 1)
    targets = ("--target", *TOOLS, *LIBRARIES)
    run(peers, "nice", "-n", "19", cmake, "--build", str(peers.build), "--parallel", jobs, *targets)


def link_libraries(peers: Peers) -> None:
    (packages,) = peers.folder.glob("lib/python3*/site-packages/llama_cpp")
    (packages / "lib").mkdir(exist_ok=True)
    for library in (peers.build / "bin").glob("lib*.so*"):
        link = packages / "lib" / library.name
        link.unlink(missing_ok=True)
        link.symlink_to(library)


def run(peers: Peers, *command: str, env: dict[str, str] | None = None) -> None:
    """What it prints goes to the folder's log; its end is shown when it fails."""
    log = peers.folder / "build.log"
    with log.open("ab") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}, check=False
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise SystemExit(f"{end}\n{command[0]} ended with {done.returncode}; all of it is in {log}")


if __name__ == "__main__":
    build_peers(the_peers())
