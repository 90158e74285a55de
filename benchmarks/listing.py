"""Text of `run --list` (every cell, preset and suite) and of `run --show CELL` (the fields of one cell)."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from backbench.config import as_override
from benchmarks import plan
from transfer import tasks


def everything() -> str:
    """Return three tables: cells, presets of each task, suites."""
    cells = plan.all_cells().found.values()
    suites = {name: plan.load_suite(name) for name in plan.suite_names()}
    rows = [
        (cell.name, cell.config.data.name, cell.task_name, cell.config.preset,
         ", ".join(name for name, suite in suites.items() if cell.name in suite.cells))
        for cell in cells
    ]  # fmt: skip
    presets = [(name, ", ".join(task.Config.PRESETS) or "-") for name, task in tasks.known().items()]
    listed = [(name, str(len(suite.cells)), " ".join(suite.cells)) for name, suite in suites.items()]
    parts = [
        _table(("CELL", "DATA", "TASK", "PRESET", "SUITES"), rows),
        _table(("TASK", "PRESETS"), presets),
        _table(("SUITE", "CELLS", ""), listed),
        "`--show CELL` lists a cell's fields; set one with CELL.FIELD=VALUE, for example imagenet_knn.preset=wmse.",
    ]
    return "\n\n".join(parts)


def cell_text(name: str, overrides: Sequence[str] = ()) -> str:
    """Return every field of a cell with its value and the comment behind it in the source, if any.

    Raises:
        ConfigError: the cell or a field is unknown; the message suggests the nearest name.
    """
    cell = plan.load_cell(name, plan.split_overrides(overrides, [name])[name])
    presets = ", ".join(cell.task.Config.PRESETS) or "none"
    head = (
        f"{name}: task {cell.task_name} on data '{cell.config.data.name}', preset {cell.config.preset} (of: {presets})"
    )
    doc = (inspect.getdoc(inspect.getmodule(cell.task.Config)) or "").strip().splitlines()
    rows = [(f"{name}.{key}", value, comment) for key, value, comment in _fields(cell.config)]
    return "\n\n".join([head, *doc[:1], _table(("FIELD", "VALUE", ""), rows)])


def _fields(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    comments = field_comments(type(config))
    for key in type(config).model_fields:
        value = getattr(config, key)
        if isinstance(value, BaseModel):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", as_override(value), comments.get(key, "")


def field_comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comment at the end of each field's definition, including inherited fields."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel:
            try:
                source = textwrap.dedent(inspect.getsource(kind))
            except (OSError, TypeError):  # a model without a file
                continue
            found |= _comments_in(source)
    return found


def _comments_in(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (kind,) = ast.parse(source).body
    assert isinstance(kind, ast.ClassDef)
    return {
        node.target.id: " ".join(
            by_line[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in by_line
        )
        for node in kind.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns to their widest word, without spaces at line ends."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(w.ljust(n) for w, n in zip(line, widths, strict=False)), line[-1]]).rstrip() for line in lines
    )
