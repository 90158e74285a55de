"""The Jinja environment of all pages: every value is escaped, and characters that a browser hides are spelled out."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.report import escape


def environment(folder: Path) -> Environment:
    """Return the environment of the templates in a folder; a name that a template is not given is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escape.html,
    )
