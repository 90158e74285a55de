"""README and docs/ show exactly the numbers of the result files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from backbench.errors import BackbenchError
from benchmarks.report import readme
from benchmarks.report.table import gather

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASURED = ROOT / "docs" / "measured.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def written(folder: Path, text: str) -> Path:
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder / "README.md"


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_a_page_shows_the_numbers_of_the_result_files(page: Path) -> None:
    assert readme.update(page) == page.read_text(encoding="utf-8"), "run: python -m benchmarks.report --readme"


def test_every_page_with_a_block_is_rewritten() -> None:
    assert [page for page in PAGES if readme._BEGIN.search(page.read_text(encoding="utf-8"))] == list(readme.PAGES)


def test_every_folder_of_results_but_the_rehearsal_is_shown() -> None:
    texts = [page.read_text(encoding="utf-8") for page in readme.PAGES]
    shown = {found[2] or found[1] for text in texts for found in readme._BLOCK.finditer(text)}
    assert shown == {folder.name for folder in readme.MEASURED.iterdir() if folder.is_dir()} - {"rehearsal"}


@each_page
def test_no_placeholder_is_left(page: Path) -> None:
    assert "@@" not in page.read_text(encoding="utf-8")


def test_only_means_are_told_one_by_one(make) -> None:
    single = make(60.0, cell="inat18_linear")
    text = readme._each(gather([make(50.0), make(52.0, seed=1), make(9.0, name="b", weights="b"), single]))
    assert text == "- imagenet_linear top1, one by one: b 9.0; mine 50.0, 52.0\n"
    assert readme._each(gather([single])).strip() == ""


def test_every_number_of_every_block_is_rewritten(tmp_path: Path) -> None:
    """Changing all digits of all blocks by hand is undone by an update."""
    text = MEASURED.read_text(encoding="utf-8")
    blocks = list(readme._BLOCK.finditer(text))
    assert len(blocks) >= 3 and sum(len(re.findall(r"\d", block[3])) for block in blocks) > 300
    changed = readme._BLOCK.sub(lambda b: b[0].replace(b[3], re.sub(r"\d", "7", b[3])), text)
    assert changed != text
    assert readme.update(written(tmp_path, changed)) == text


@each_page
def test_no_result_stands_outside_the_blocks(page: Path) -> None:
    assert readme.by_hand(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    ["| msbreg | 36.3 |", "| msbreg | **36.3** |", "| a | <u>36.3 ± 0.5 (3 seeds)</u> | b |", "| a | 71% |", "| a | -2.4 |",
     "we measured 40.1 ± 0.2", "| a | +3.1 [+1.0, +5.2] |"],
)  # fmt: skip
def test_a_result_typed_by_hand_is_found(line: str) -> None:
    text = f"# x\n\n| a | b |\n|---|---|\n{line}\n"
    assert readme.by_hand(text) == [line]
    assert readme.by_hand(f"<!-- measured:photos -->\n{line}\n<!-- /measured -->\n") == []
    assert readme.by_hand(f"<!-- mesured:photos -->\n{line}\n<!-- /mesured -->\n") == [line], "no block of ours"


@pytest.mark.parametrize("line", ["| `imagenet_knn` | weighted 20- and 200-NN, T 0.07 | `npid` |", "3,000 photographs"])
def test_a_description_with_numbers_is_no_result(line: str) -> None:
    assert readme.by_hand(line) == []


@pytest.mark.parametrize("kind", ["measured", "compare", "speed"])
def test_a_block_without_its_end_is_an_error(tmp_path: Path, kind: str) -> None:
    text = f"<!-- {kind}:photos -->\n| a |\n\n<!-- measured:demo -->\n<!-- /measured -->\n"
    with pytest.raises(BackbenchError, match="no end"):
        readme.update(written(tmp_path, text))


def test_a_block_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackbenchError, match="'measured:nothing' has no folder of results"):
        readme.update(written(tmp_path, "<!-- measured:nothing -->\n<!-- /measured -->\n"))


def test_studies_stand_in_the_order_of_the_papers_tables() -> None:
    """All methods beside each other (Table 1) come first; a study of no table comes last."""
    headings = re.findall(r"^\*\*.+\*\* \((.+)\)\. ", readme.evidence(readme.MEASURED / "evidence"), re.MULTILINE)
    numbers = [int(heading.removeprefix("Table ")) for heading in headings if heading.startswith("Table ")]
    assert len(numbers) >= 5 and numbers == sorted(numbers)
    assert all(not heading.startswith("Table ") for heading in headings[len(numbers) :])


def test_a_comparison_in_the_readme(tmp_path: Path) -> None:
    """A line for each headline, with the interval where scores per item are stored."""
    text = readme.update(written(tmp_path, "<!-- compare:photos -->\n<!-- /compare -->\n"))
    lines = [line for line in text.splitlines() if "msbreg" in line]
    assert len(lines) == len({line.split("|")[1] for line in lines}) > 4
    assert all(re.search(r"[+-]\d+\.\d+ († )?(\[[+-]|\(no interval)", line) for line in lines)
    assert "paired bootstrap" in text and readme.by_hand(text) == []


def test_a_comparison_needs_a_random_baseline(tmp_path: Path) -> None:
    source = next((readme.MEASURED / "photos").glob("msbreg-*"))
    shutil.copytree(source, tmp_path / "root" / "mine" / source.name)
    page = written(tmp_path, "<!-- compare:mine -->\n<!-- /compare -->\n")
    with pytest.raises(BackbenchError, match="no random baseline"):
        readme.update(page, tmp_path / "root")
