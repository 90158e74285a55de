"""`--key PATH` and `--prefix WORDS`: which network of a checkpoint file is meant."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The dictionary of tensors to read, and the prefix of the backbone's names in it; None where not given."""

    key: str | None = None
    prefix: str | None = None


NO_CHOICE = Choice()


def add_options(parser: argparse.ArgumentParser, of: str = "a checkpoint file") -> None:
    """`--key` and `--prefix`, for a file with more than one network or with names that are not known.

    Args:
        of: what they apply to, for the help.
    """
    parser.add_argument(
        "--key",
        metavar="PATH",
        help=f"of {of}: the dictionary of tensors that is meant, its keys joined by dots (model_ema, ema.shadow; '.' for "
        "the whole file)",
    )
    parser.add_argument(
        "--prefix",
        metavar="WORDS",
        help=f"of {of}: what stands before the backbone's names (trunk.; '' for none); tensors outside it are passed over "
        "and counted",
    )


def spelled(choice: Choice) -> list[str]:
    """The options of a command that say the same."""
    said = {"--key": choice.key, "--prefix": choice.prefix}
    return [f"{option}={words}" for option, words in said.items() if words is not None]


def of_arguments(args: argparse.Namespace) -> Choice:
    """The choice made on a command line."""
    return Choice(args.key, args.prefix)
