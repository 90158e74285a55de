"""Names of the recipes that come with the package: `demo`, or `METHOD/NAME` for the methods beside MSBReg."""

from __future__ import annotations

from pathlib import Path

from backbench.files.folders import configs_folder

FOLDER = configs_folder() / "pretrain"


def names() -> list[str]:
    """Return all names; MSBReg's come first."""
    found = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")]
    return sorted(found, key=lambda name: ("/" in name, name))


def run_name(recipe: str | None) -> Path:
    """The folder of a recipe's runs below `runs`: the recipe's name, or the stem of the user's own file."""
    if recipe is None:
        return Path("demo")
    return Path(recipe) if recipe in names() else Path(Path(recipe).stem)
