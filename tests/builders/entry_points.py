"""Run a test's main function under `run_cli` in a new process without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from commands import ROOT


def end(
    body: str, *, prepare: Callable[[], object] | None = None, **fields: object
) -> subprocess.CompletedProcess[str]:
    """Run a main function with this body; returns its exit code and its output as text."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    source = f"import errno, os, sys, threading\nsys.path.insert(0, {str(ROOT)!r})\n"
    source += (
        f"from backbench.errors import *\nfrom backbench.errors import run_cli\ndef main():\n{lines}run_cli(main)\n"
    )
    fields = {"capture_output": True, "text": True, "errors": "replace", "timeout": 60, **fields}
    return subprocess.run([sys.executable, "-S", "-c", source], preexec_fn=prepare, **fields)  # type: ignore[call-overload]
