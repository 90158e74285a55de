"""The command `backbench`: one subcommand per tool, with the same options as the tool's script."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from dataclasses import dataclass

from backbench.errors import ConfigError, nearest, run_cli


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that has `parser(prog)` and `main(argv, prog=...)`, and its line in the help."""

    module: str
    help: str


COMMANDS = {
    "pretrain": Command("pretrain.run", "pretrain a backbone"),
    "run": Command("benchmarks.run_all", "measure how well checkpoints transfer"),
    "status": Command("benchmarks.status", "show which cells are done, running, waiting or failed"),
    "compare": Command("benchmarks.compare", "compare results with each other and with published numbers"),
    "report": Command("benchmarks.report.__main__", "render the report of a results folder again"),
    "submit": Command("benchmarks.submit", "check records and write them as an entry for a public board"),
    "board": Command("benchmarks.board.__main__", "build a public board, a static site, from a folder of entries"),
    "card": Command("benchmarks.card", "write a model card (README.md) from records"),
    "zoo": Command("model_zoo.__main__", "list, show, download, check and convert checkpoints"),
    "data": Command("backbench.data.__main__", "check, unpack and list data sets"),
    "engines": Command("transfer.detection.__main__", "check or install the engines of detection and segmentation"),
    "speed": Command("benchmarks.speed.__main__", "measure speed on this machine, beside peers and limits"),
    "evidence": Command("benchmarks.evidence.__main__", "measure a claim of the MSBReg paper again"),
    "demo": Command("benchmarks.demo", "pretrain on rendered scenes and measure the result; needs no data"),
}


def main() -> None:
    """Entry point of the console script; exits with the command's code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Ctrl-C during the imports: no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    words = sys.argv[1:]
    run_cli(lambda: dispatch(words), single=words[:1] != ["pretrain"])


def dispatch(words: list[str]) -> int:
    """Run the subcommand named by the first word; returns its exit code.

    Raises:
        ConfigError: the subcommand is unknown; the message suggests the nearest name.
    """
    if words and words[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[words[0]].module)
        code: int = module.main(words[1:], prog=f"backbench {words[0]}")
        return code
    if words and not words[0].startswith("-"):
        raise ConfigError(f"backbench {words[0]}: unknown command{nearest(words[0], COMMANDS)}")
    args = parser().parse_args(words)
    if args.version:
        import backbench

        print(f"backbench {backbench.__version__}")
    elif args.print_completion:
        import shtab

        print(shtab.complete(whole_parser(), shell=args.print_completion))
    else:
        parser().print_help()
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options before any subcommand; imports no subcommand."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    p = argparse.ArgumentParser(
        prog="backbench",
        usage="backbench COMMAND ... | --version | --print-completion {bash,zsh,tcsh}",
        description="Pretrain vision backbones and measure how well any checkpoint transfers.",
        epilog="\n".join(["commands:", *lines, "", "`backbench COMMAND --help` shows the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="store_true", help="print the version")
    p.add_argument(
        "--print-completion", choices=["bash", "zsh", "tcsh"], help="print a completion script for this shell"
    )
    return p


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser with every subcommand and its options, as completion needs it."""
    whole = argparse.ArgumentParser(prog="backbench")
    for action in parser()._actions:
        if action.dest != "help":
            whole._add_action(action)
    commands = whole.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        own = importlib.import_module(command.module).parser(f"backbench {name}")
        commands.add_parser(name, help=command.help, parents=[own], add_help=False)
    return whole


if __name__ == "__main__":
    main()
