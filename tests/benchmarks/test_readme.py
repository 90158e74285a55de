"""The README's numbers are those of the result files, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import readme
from core.errors import BackbenchError

README = Path(__file__).resolve().parent.parent.parent / "README.md"


def test_the_readme_shows_what_the_result_files_say() -> None:
    assert readme.update(README) == README.read_text(encoding="utf-8"), (
        "run: python -m benchmarks.report --readme README.md"
    )


def test_a_number_changed_by_hand_is_seen(tmp_path: Path) -> None:
    changed = README.read_text(encoding="utf-8").replace(" ± ", " ± 1", 1)
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    assert readme.update(tmp_path / "README.md") != changed


def test_a_block_without_its_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- measured:photos -->\n| a |\n")
    with pytest.raises(BackbenchError, match="no end"):
        readme.update(tmp_path / "README.md")
