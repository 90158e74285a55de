"""Write the files that docs/extending.md shows as a plug-in folder."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def examples() -> list[tuple[str, str]]:
    """Return (path below the folder, text) of every block with a title."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r'^```\w+ title="plugins/([^"]+)"\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)


def write(root: Path) -> Path:
    """Write them to `<root>/plugins`."""
    for name, text in examples():
        file = root / "plugins" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root / "plugins"
