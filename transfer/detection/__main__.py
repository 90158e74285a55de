"""Show which engines of detection and segmentation work here, and install what is missing."""

from __future__ import annotations

import argparse

from backbench.errors import run_cli


def parser(prog: str = "python -m transfer.detection") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor", help="show whether each engine works, its versions, and what to do otherwise"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON for programs")
    commands.add_parser("install", help="install missing parts of all engines; needs no compiler")
    return parser


def main(argv: list[str] | None = None, *, prog: str = "python -m transfer.detection") -> int:
    """Run the command. Return exit code 1 if an engine or OpenCV does not work."""
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
