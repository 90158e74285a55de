"""`run_cli` on a main function of a test, in a process of its own that imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from commands import ROOT


def end(
    body: str, *, prepare: Callable[[], object] | None = None, **fields: object
) -> subprocess.CompletedProcess[str]:
    """How a main function of this body ends, its output as text."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    source = f"import errno, os, sys, threading\nsys.path.insert(0, {str(ROOT)!r})\n"
    source += (
        f"from backbench.errors import *\nfrom backbench.errors import run_cli\ndef main():\n{lines}run_cli(main)\n"
    )
    fields = {"capture_output": True, "text": True, "errors": "replace", "timeout": 60, **fields}
    return subprocess.run([sys.executable, "-S", "-c", source], preexec_fn=prepare, **fields)  # type: ignore[call-overload]
