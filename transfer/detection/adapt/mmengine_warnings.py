"""Forward MMEngine's warnings to Python's logging instead of printing them; its INFO has a line for every tensor.

Remove this when MMEngine's loggers pass records on.
"""

from __future__ import annotations

import logging


class _Forward(logging.Handler):
    """Passes records on to the logger `mmengine` of Python's logging, which MMEngine's own loggers bypass."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("mmengine").handle(record)


def quiet() -> None:
    """Forward warnings and errors of MMEngine's current logger; drop the rest. Idempotent."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    logger.setLevel(logging.WARNING)
    logger.handlers[:] = [_Forward()]
