"""What a protocol is, in the words at the head of its task's file."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

import transfer
from backbench import plugins
from backbench.errors import BackbenchError
from backbench.files import read_text


@functools.cache
def about(task: str) -> tuple[str, ...]:
    """Return the first sentence of a task's text and its paragraphs; empty for a task that this installation lacks.

    The file is parsed, not imported: a report needs no torch.
    """
    folders = [Path(transfer.__file__).parent / "tasks", *(at / plugins.MODULES["tasks"] for at in plugins.included())]
    for file in (folder / f"{task}.py" for folder in folders if task.isidentifier()):
        if file.is_file():
            return _split(file)
    return ()


def _split(file: Path) -> tuple[str, ...]:
    try:
        found = ast.get_docstring(ast.parse(read_text(file)))
    except (BackbenchError, SyntaxError, ValueError):
        return ()
    paragraphs = re.split(r"\n\s*\n|\n(?=- )", inspect.cleandoc(found or ""))
    return tuple(" ".join(words.split()) for words in paragraphs if words.strip())
