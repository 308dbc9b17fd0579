"""The pictures of the benchmarks are those of the recorded figures, under the README's names."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

from benchmarks.plots import NAMES, PICTURES, RESULTS, draw

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="source distributions come without the recorded results")


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_up_to_date(name: str, tmp_path: Path) -> None:
    draw(name, RESULTS, tmp_path, ["svg"])
    drawn, recorded = (folder / f"{name}.svg" for folder in (tmp_path, RESULTS))
    assert (RESULTS / f"{name}.png").is_file()
    if f"Matplotlib v{matplotlib.__version__}," in recorded.read_text():
        same = drawn.read_bytes() == recorded.read_bytes()
    else:  # another version places things a little differently, but says the same
        same = texts(drawn) == texts(recorded)
    assert same, f"{recorded} is out of date: run `python -m benchmarks.plots`"


def texts(picture: Path) -> list[str]:
    return sorted(re.findall(r"<text[^>]*>(.*?)</text>", picture.read_text(), re.DOTALL))


def test_names_are_those_of_the_readme() -> None:
    table = (ROOT / "README.md").read_text().split("| program | passages/s")[1].split("\n\n")[0]
    names = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    assert len(names) > 5
    assert set(names) <= set(NAMES.values())


def test_every_picture_is_shown_and_every_one_shown_is_drawn() -> None:
    shown = set()
    for page in (ROOT / "README.md", ROOT / "docs/benchmarks.md"):
        for path in re.findall(r"!\[[^]]+\]\(\S+(benchmarks/results/[^)]+)\)", page.read_text()):
            assert (ROOT / path).is_file(), path
            shown.add(Path(path).stem)
    assert shown == set(PICTURES)
