"""`--key PATH` and `--prefix WORDS` choose one network of a checkpoint file."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The dictionary of tensors to read, and the prefix of the backbone's names in it; None if not given."""

    key: str | None = None
    prefix: str | None = None


NO_CHOICE = Choice()


def add_options(parser: argparse.ArgumentParser, of: str = "a checkpoint file") -> None:
    """Add `--key` and `--prefix`, for files with several networks or unknown names.

    Args:
        of: the source they apply to, for the help text.
    """
    parser.add_argument(
        "--key",
        metavar="PATH",
        help=f"for {of}: the dictionary of tensors to read, as keys joined by dots (model_ema, ema.shadow; '.' for the "
        "whole file)",
    )
    parser.add_argument(
        "--prefix",
        metavar="WORDS",
        help=f"for {of}: the prefix of the backbone's names (trunk.; '' for none); other tensors are skipped and counted",
    )


def spelled(choice: Choice) -> list[str]:
    """Return the choice as options of a command."""
    said = {"--key": choice.key, "--prefix": choice.prefix}
    return [f"{option}={words}" for option, words in said.items() if words is not None]


def of_arguments(args: argparse.Namespace) -> Choice:
    """Return the choice made on a command line."""
    return Choice(args.key, args.prefix)
