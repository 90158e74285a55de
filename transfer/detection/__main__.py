"""Which detection engines can be used here, and how to install what is missing."""

from __future__ import annotations

import argparse

from backbench.errors import run_cli


def parser(prog: str = "python -m transfer.detection") -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="is every engine usable, which versions, what to do otherwise")
    doctor.add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("install", help="install what is missing of Detectron2 and MMDet; needs no compiler")
    return parser


def main(argv: list[str] | None = None, *, prog: str = "python -m transfer.detection") -> int:
    """Exit code 1 when an engine, or OpenCV, cannot be used."""
    args = parser(prog).parse_args(argv)
    if args.command == "install":
        from transfer.detection.install import install

        install()
        return 0
    from transfer.detection.doctor import examine, healthy, text

    found = examine()
    if args.json:
        import json

        print(json.dumps(found, indent=1))
    else:
        print(text(found))
    return 0 if healthy(found) else 1


if __name__ == "__main__":
    run_cli(main, single=True)
