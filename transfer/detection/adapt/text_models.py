"""Import MMDetection and MMSegmentation without Hugging Face's transformers, which only their text models use.

Where it is installed, importing either of them imports it, which is a third of their start. They take it for absent when
the import fails. Remove this when they import it where they use it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Let `import transformers` fail inside the block. A process that has imported it before keeps it."""
    if "transformers" in sys.modules:
        yield
        return
    sys.modules["transformers"] = None  # type: ignore[assignment] # Python's own mark of a module that is not to be found
    try:
        yield
    finally:
        del sys.modules["transformers"]
