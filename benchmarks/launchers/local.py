"""Cells as processes on this machine."""

from backbench.local import run

__all__ = ["run"]
