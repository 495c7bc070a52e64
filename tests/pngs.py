"""`make pngs`: PNGs of the pictures in screenshots/, for where an SVG with fonts of another site is not shown.

Chromium draws them exactly; rsvg-convert is quicker, and right once spaces are kept and Fira Code is installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
_ASKED_FONTS = re.compile(r"@font-face \{.*?\}", re.DOTALL)
TIMEOUT_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("svgs", nargs="*", type=Path, help="All of screenshots/ by default.")
    parser.add_argument("--out", type=Path, default=ROOT / "screenshots" / "png")
    arguments = parser.parse_args()
    draw = _drawer()
    if draw is None:
        sys.stderr.write("neither chromium nor rsvg-convert is here: `make browser` brings the first\n")
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    for svg in arguments.svgs or sorted((ROOT / "screenshots").glob("*.svg")):
        png = arguments.out / f"{svg.stem}.png"
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / svg.name
            source.write_text(local_svg(svg.read_text(encoding="utf-8")), encoding="utf-8")
            draw(source, png.absolute())
        sys.stdout.write(f"{png}\n")
    return 0


def local_svg(text: str) -> str:
    """The picture without fonts of another site (this machine's Fira Code is meant), its leading spaces kept."""
    return _ASKED_FONTS.sub("", text).replace("<text ", '<text xml:space="preserve" ')


def size_of(text: str) -> tuple[int, int]:
    """Pixels across and down, whole ones. Raises ValueError where the SVG does not say."""
    found = _VIEW_BOX.search(text)
    if found is None:
        raise ValueError("an SVG without a viewBox")
    width, height = (int(float(number) + 0.999) for number in found.groups())
    return width, height


def _drawer() -> Callable[[Path, Path], None] | None:
    if chromium := next(filter(None, map(shutil.which, CHROMIUM)), None):
        return lambda svg, png: _with_chromium(chromium, svg, png)
    return _with_rsvg if shutil.which("rsvg-convert") else None


def _with_chromium(chromium: str, svg: Path, png: Path) -> None:
    width, height = size_of(svg.read_text(encoding="utf-8"))
    argv = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={svg.parent / 'profile'}", f"--window-size={width},{height}", f"--screenshot={png}",
        svg.as_uri(),
    ]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True, timeout=TIMEOUT_S)


def _with_rsvg(svg: Path, png: Path) -> None:
    subprocess.run(["rsvg-convert", "-o", str(png), str(svg)], check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
