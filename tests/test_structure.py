"""Rules of the repository: the direction of imports, the files at the top, and that every configuration is readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backbench.data import catalogue
from benchmarks import pairs, plan
from benchmarks.evidence import study
from pretrain import config as pretrain_config
from pretrain import recipes

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("backbench", "model_zoo", "pretrain", "transfer", "benchmarks")
MAY_IMPORT = {
    "backbench": {"backbench"},
    "model_zoo": {"backbench", "model_zoo"},
    "pretrain": {"backbench", "model_zoo", "pretrain"},
    "transfer": {"backbench", "model_zoo", "transfer"},
    "benchmarks": {"backbench", "model_zoo", "pretrain", "transfer", "benchmarks"},
}
FACE = ("backbench/__init__.py", "backbench/__main__.py")  # the API and the command may import every part
TOP_LEVEL = {
    *("pretrain", "transfer", "benchmarks", "model_zoo", "configs", "backbench", "tests"),
    *("pyproject.toml", "setup.py", "MANIFEST.in", "Makefile", "LICENSE", "constraints.txt", ".ci", ".gitignore"),
    *("README.md", "docs", "mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", ".github"),
    ".pre-commit-config.yaml",
}
CATCH_ALL = {"utils", "util", "common", "helpers", "helper", "misc"}


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of every import: plain, relative, inside functions, and by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield node.lineno, ".".join([*parents, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def wrong_arrows(root: Path) -> list[str]:
    """Return imports against the allowed direction, as `file:line imports x`."""
    wrong = []
    for part in PARTS:
        for file in sorted((root / part).rglob("*.py")):
            relative = file.relative_to(root)
            if relative.as_posix() in FACE:
                continue
            package = ".".join(relative.parent.parts)
            for line, name in imported_modules(file.read_text(encoding="utf-8"), package):
                top = name.split(".")[0]
                if top in {*PARTS, "tests"} and top not in MAY_IMPORT[part]:
                    wrong.append(f"{relative.as_posix()}:{line} imports {name}")
    return wrong


def sources() -> list[Path]:
    files = [file for part in (*PARTS, "tests") for file in sorted((ROOT / part).rglob("*.py"))]
    assert len(files) > 30, "the parts were not found"
    return files


def test_no_import_runs_against_the_direction():
    sources()
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("backbench/x.py", "import model_zoo.load"),
        ("model_zoo/x.py", "from transfer import tasks"),
        ("pretrain/x.py", "def f():\n    import transfer.svm"),
        ("transfer/x.py", "from pretrain.losses import centroid_loss"),
        ("transfer/x.py", "import importlib\nimportlib.import_module(f'benchmarks.{1}')"),
        ("benchmarks/x.py", "from tests.conftest import ROOT"),
        ("pretrain/x.py", "if 0:\n    from benchmarks import plan"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(wrong_arrows(tmp_path)) == 1
    assert wrong_arrows(tmp_path)[0].startswith(file)


def test_relative_imports_are_resolved():
    source = "from . import a\nfrom .b import c\nfrom ..d import e\nfrom ...f import g\n"
    names = [name for _, name in imported_modules(source, "top.middle.low")]
    assert names == ["top.middle.low", "top.middle.low.b", "top.middle.d", "top.f"]


def test_the_right_arrows_are_not_reported(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "x.py").write_text(
        "import backbench.config, pretrain\nfrom . import plan\nimport corelib\n"
    )
    assert wrong_arrows(tmp_path) == []


def test_no_catch_all_module():
    named = [p.relative_to(ROOT).as_posix() for p in sources() if {p.stem, *p.relative_to(ROOT).parts} & CATCH_ALL]
    assert named == []


def test_nothing_else_at_the_top():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {"backbench", "pretrain", "pyproject.toml"} <= top
    assert sorted(top - TOP_LEVEL) == []


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_passes(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_types_agree():
    """mypy with the settings of pyproject.toml passes every package."""
    words = ["--config-file", "pyproject.toml", *PARTS]
    done = subprocess.run([sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_one_file_sets_up_the_process_group():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if "init_process_group"
        in (getattr(node, "attr", None), getattr(node, "id", None), *(a.name for a in getattr(node, "names", [])
            if isinstance(a, ast.alias)))
    }  # fmt: skip
    assert users == {"backbench/distributed.py"}


RECIPES = recipes.names()


def test_every_yaml_is_read_by_one_of_the_loaders():
    found = {p.relative_to(ROOT / "configs").as_posix() for p in (ROOT / "configs").rglob("*.y*ml")}
    ours = {name for name in found if not name.startswith("detection/")}  # those are the engines' own files
    loaded = {f"pretrain/{n}.yaml" for n in RECIPES}
    loaded |= {f"suites/{n}.yaml" for n in plan.suite_names()}
    loaded |= {f"evidence/{n}.yaml" for n in study.names()}
    for kind, parts in (("data", catalogue.described()), ("protocols", pairs.protocols()), ("tasks", pairs.files())):
        assert not parts.broken
        loaded |= {f"{kind}/{n}.yaml" for n in parts.found}
    assert set(pairs.files().found) <= set(plan.cell_names())
    assert {"demo", "paper"} <= set(plan.suite_names())
    assert "demo" in RECIPES
    assert ours == loaded


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_loads(recipe):
    loaded = pretrain_config.load(recipe, [])
    assert loaded.peak_lr() > 0
    assert loaded == pretrain_config.load(str(ROOT / "configs" / "pretrain" / f"{recipe}.yaml"), [])


@pytest.mark.parametrize("profile", ["full", "smoke"])
@pytest.mark.parametrize("name", plan.cell_names())
def test_cell_loads(name, profile):
    cell = plan.load_cell(name, profile=profile)
    assert cell.name == name
    if profile == "smoke":
        assert cell.config.data.expect == "any"
        assert cell.config_sha256 != plan.load_cell(name).config_sha256


@pytest.mark.parametrize("name", plan.suite_names())
def test_suite_loads_with_all_its_cells(name):
    suite = plan.load_suite(name)
    assert len(set(suite.cells)) == len(suite.cells) > 0
    overrides = plan.split_overrides(suite.overrides, suite.cells)
    for cell in suite.cells:
        for profile in ("full", "smoke"):
            assert plan.load_cell(cell, overrides[cell], profile).name == cell
