"""`--key PATH` and `--prefix WORDS` choose one network of a checkpoint file; `--arch timm:NAME` says which network it is."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The dictionary of tensors to read, the prefix of the backbone's names in it, its architecture; None if not given."""

    key: str | None = None
    prefix: str | None = None
    arch: str | None = None  # None: a ResNet, recognised from its tensors


NO_CHOICE = Choice()


def add_options(parser: argparse.ArgumentParser, of: str = "a checkpoint file") -> None:
    """Add `--key` and `--prefix`, for files with several networks or unknown names, and `--arch`, for other networks.

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
    parser.add_argument(
        "--arch",
        metavar="timm:NAME",
        help=f"for {of} of another network than a ResNet: its architecture in timm, with the fields that its tensors do not "
        "show (timm:vit_small_patch16_224?num_heads=12)",
    )


def spelled(choice: Choice) -> list[str]:
    """Return the choice as options of a command."""
    said = {"--key": choice.key, "--prefix": choice.prefix, "--arch": choice.arch}
    return [f"{option}={words}" for option, words in said.items() if words is not None]


def of_arguments(args: argparse.Namespace) -> Choice:
    """Return the choice made on a command line."""
    return Choice(args.key, args.prefix, args.arch)
