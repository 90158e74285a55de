"""README and docs/: command lines fit the real parsers and name what exists, Python blocks hold, links resolve."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import re
import shlex
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import worked_examples
import yaml

import backbench
from backbench import plugins
from backbench.data import catalogue
from backbench.errors import BackbenchError
from benchmarks import cli, pairs, plan
from model_zoo import entries
from pretrain import config as pretrain_config
from pretrain import grid
from transfer import tasks

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

OF_A_SHELL = {"git", "pip", ".", "cd", "sbatch", "export", "mkdir", "pre-commit", "curl"}


class Block(NamedTuple):
    """A fenced block."""

    line: int
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    found = [Block(text.count("\n", 0, f.start()) + 1, f[1], f[2]) for f in fences]
    return [block for block in found if block.language in languages]


def commands(page: Path) -> Iterator[str]:
    """Every command line of a page: of its shell blocks, and of code within a sentence that has arguments."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page, "sh", "bash"):
        yield from block.text.replace("\\\n", " ").splitlines()
    for span in re.findall(r"`((?:backbench|python -m|make) (?!<-)[^`]+)`", text):
        if not re.fullmatch(r"backbench \w+|python -m [\w.]+", span):  # a program's name alone
            yield span


class Parsed(Exception):
    """The result of a program's own parser for a command line."""


def parsed(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return the options that `module.main(words)` reads, without running it. Raises SystemExit when they do not fit."""
    with monkeypatch.context() as patch, pytest.raises(Parsed) as reached:
        for name in ("parse_args", "parse_intermixed_args"):
            parse = getattr(argparse.ArgumentParser, name)

            def stop(self, argv=None, namespace=None, parse=parse):
                raise Parsed(parse(self, argv, namespace))

            patch.setattr(argparse.ArgumentParser, name, stop)
        importlib.import_module(module).main(words)
    return reached.value.args[0]


def check_names(module: str, args: argparse.Namespace) -> None:
    """Cells, presets, fields, recipes, data sets and zoo entries that a command names must exist."""
    if module in ("benchmarks.run_all", "benchmarks.run_one"):
        for name in {pair.partition("=")[0] for pair in args.data} - set(catalogue.known()):  # the reader's own folder
            assert re.fullmatch("[a-z0-9_]+", name), name
            cells = getattr(args, "tasks", "") or getattr(args, "cell", "")
            like = "ade20k" if "_segmentation" in cells else "coco" if "_detection" in cells else "imagenet"
            catalogue.OWN[name] = catalogue.info(like).model_copy(update={"title": name, "counts": {}})
    if module == "benchmarks.run_all":
        suite = plan.load_suite(args.suite or "paper")
        cells = plan.named_cells(args.tasks) if args.tasks else list(suite.cells)
        for cell, fields in plan.split_overrides(args.override, cells).items():
            plan.load_cell(cell, fields, args.profile)
        for name in filter(None, args.baselines.split(",")):
            assert name.startswith("random") or entries.get(name)
    if module == "benchmarks.run_one":
        plan.load_cell(args.cell, args.override, args.profile)
    if module in ("benchmarks.run_all", "benchmarks.run_one"):
        catalogue.parse_places([pair for pair in args.data if pair.partition("=")[0] not in catalogue.OWN])
        for name in [args.ckpt] if isinstance(args.ckpt, str) else args.ckpt:
            assert not name.startswith("zoo:") or entries.get(name.removeprefix("zoo:"))
    if module == "pretrain.run" and not grid.points(args.config, args.override):
        pretrain_config.load(args.config, args.override)
    if module == "model_zoo.__main__" and args.command in ("show", "download"):
        for name in [args.name] if isinstance(args.name, str) else args.name:
            entries.get(name)
    if module == "backbench.data.__main__" and args.command == "prepare":
        catalogue.info(args.name)


@pytest.fixture(autouse=True)
def a_readers_folder(monkeypatch, tmp_path):
    """The folder for the pages' commands: the one with the plug-ins of docs/extending.md."""
    monkeypatch.setattr(catalogue, "OWN", {})
    monkeypatch.setenv(plugins.VARIABLE, "")
    worked_examples.write(tmp_path)
    monkeypatch.chdir(tmp_path)


def check(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a command line that a reader may type: its program, options and names exist.

    Raises:
        SystemExit, AssertionError, BackbenchError: they do not.
    """
    words = [word for word in shlex.split(line, comments=True)]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0] in OF_A_SHELL:
        return
    program, *words = words
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets for word in words if "=" not in word), f"no such target: {line}"
        return
    if program == "backbench":
        module, words = cli.COMMANDS[words[0]].module, words[1:]
    elif program == "torchrun":
        while words[0].startswith("--"):
            words = words[1:]
        module, words = words[0].removesuffix(".py").replace("/", "."), words[1:]
    else:
        assert program in ("python", "python3"), f"a program that no page installs: {line}"
        module, words = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        if module == "venv" or module.startswith(
            ("tools/", "transfer.detection.engines", "transfer.segmentation.engines")
        ):
            return
        is_file = module.endswith(".py")
        module = module.removesuffix(".py").replace("/", ".")
        if not is_file and (ROOT / module.replace(".", "/")).is_dir():
            module += ".__main__"
    check_names(module, parsed(module, words, monkeypatch))


@each_page
def test_every_command_line_fits_its_program(page, monkeypatch):
    wrong = []
    for line in commands(page):
        try:
            check(line, monkeypatch)
        except (SystemExit, AssertionError, BackbenchError, KeyError, ImportError) as error:
            wrong.append(f"{line}\n    {type(error).__name__}: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    ["backbench run --cpkt a.pth", "backbench run --tasks imagenet_kn --ckpt a.pth", "backbench pretrain --config dmeo",
     "backbench run --ckpt a.pth --tasks imagenet_knn imagenet_knn.preset=mooc", "make domo", "backbench fly --now",
     "backbench zoo show moco_v9", "backbench run --ckpt zoo:moco_v9", "backbench run --ckpt a.pth --baselines moco_v9",
     "BACKBENCH_ZOO=X backbench run --ckpt a.pth --data VOC=DIR", "python benchmarks/run_one.py --ckpt a --cell x",
     "torchrun --nproc_per_node=8 pretrain/run.py optim.epoch=3"],
)  # fmt: skip
def test_a_wrong_command_line_is_found(line, monkeypatch, capsys):
    with pytest.raises((SystemExit, AssertionError, BackbenchError, KeyError)):
        check(line, monkeypatch)


@each_page
def test_python_blocks_compile_and_import_what_exists(page):
    for block in blocks(page, "python"):
        tree = ast.parse(block.text, f"{page.name}:{block.line}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert missing == [], f"{page.name}:{block.line}: {node.module} has no {missing}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "backbench":
                    function = getattr(backbench, node.func.attr)
                    inspect.signature(function).bind(*node.args, **{k.arg: k.value for k in node.keywords if k.arg})


@each_page
def test_yaml_blocks_are_yaml(page):
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block.text) is not None, f"{page.name}:{block.line}"


@each_page
def test_every_fence_names_its_language(page):
    assert [block.line for block in blocks(page, "")] == []


def slug(heading: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@each_page
def test_links_resolve(page):
    text = re.sub(r"```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor and file.is_file() else []
        if not file.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(target)
        if page.parent.name == "docs" and name.startswith(".."):
            broken.append(f"{target}: outside the site")
    assert broken == []


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(file for entry in nav for file in entry.values()) == sorted(p.name for p in PAGES[2:])


def test_the_readme_is_short_and_its_picture_light():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
    assert (ROOT / "docs" / "pictures" / "report.png").stat().st_size < 300_000


def documented(page: str) -> set[str]:
    """Every word of a page."""
    return set(re.findall(r"[\w.]*\w", (ROOT / "docs" / page).read_text()))


def test_every_cell_and_preset_has_its_place_in_the_protocols():
    words = documented("protocols.md") | documented("detection.md")
    assert sorted(set(pairs.files().found) - words) == []
    assert sorted(set(pairs.protocols().found) - words) == []
    presets = {preset for name in tasks.names() for preset in tasks.get(name).Config.PRESETS}
    assert sorted(presets - words) == []


def test_every_recipe_and_data_set_has_its_place():
    recipes = {path.stem for path in (ROOT / "configs" / "pretrain").glob("*.yaml")}
    assert sorted(recipes - documented("pretraining.md")) == []
    assert sorted(set(catalogue.known()) - documented("data.md")) == []


# Phrases that a reader stumbles over, with what to write instead.
STUMBLES = {
    r"\banew\b": "again",
    r"\bgone on (?:from|with)\b": "resumed",
    r"\bhalf there\b": "incomplete",
    r"\bone's own\b": "your own",
    r"(?<!there )(?<!There )\bis no (?!longer\b|more\b)[a-z]+": "is not a",
    r"\bwhat (?!its name says)[^.;:,]{1,60} says\b": "name who says it",
}


def stumbles(text: str) -> list[str]:
    return [match[0] for pattern in STUMBLES for match in re.finditer(pattern, text)]


@each_page
def test_pages_are_in_plain_english(page):
    text = re.sub(
        r"<!-- (measured|compare|speed|evidence|predictors)\b.*?<!-- /\1 -->", "", page.read_text(), flags=re.DOTALL
    )
    assert stumbles(text) == []


def words_of(file: Path) -> Iterator[str]:
    """Yield every string and comment of a Python file."""
    names = {"STRING", "FSTRING_MIDDLE", "COMMENT"}
    for token in tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline):
        if tokenize.tok_name[token.type] in names:
            yield token.string


@pytest.mark.parametrize("part", ["backbench", "model_zoo", "pretrain", "transfer", "benchmarks"])
def test_docstrings_and_errors_are_in_plain_english(part):
    files = sorted((ROOT / part).rglob("*.py"))
    found = {str(file.relative_to(ROOT)): [s for text in words_of(file) for s in stumbles(text)] for file in files}
    assert {file: phrases for file, phrases in found.items() if phrases} == {}


@pytest.mark.parametrize("text", ["made anew", "gone on from", "it is no file", "a file of one's own", "half there"])
def test_a_stumbling_phrase_is_found(text):
    assert stumbles(text)
    assert stumbles("It is no longer here; what you measured says little.") == ["what you measured says"]
