"""`python -m model_zoo verify|convert|list|show`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from core.errors import CheckpointError, run_cli
from model_zoo import export


def main(argv: list[str] | None = None) -> int:
    """Dispatch a sub-command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_zoo", description="Checkpoints in, checked backbones out.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="say what a checkpoint is and whether it is sound")
    verify.add_argument("file", type=Path)
    verify.add_argument("--json", action="store_true")
    convert = commands.add_parser(
        "convert", help="write a checkpoint of any known layout as model.pth or for an engine"
    )
    convert.add_argument("file", type=Path)
    convert.add_argument("--to", metavar="ENGINE", help=f"write for {' or '.join(export.names())}, with its settings")
    convert.add_argument("-o", "--output", type=Path, required=True)
    convert.add_argument("--force", action="store_true", help="overwrite the output")
    listing = commands.add_parser("list", help="published backbones")
    listing.add_argument("--method", help="only methods whose name contains this")
    listing.add_argument("--task", help="only entries with a number for this cell")
    listing.add_argument("--json", action="store_true")
    show = commands.add_parser("show", help="an entry's card with its published numbers")
    show.add_argument("name")
    args = parser.parse_args(argv)
    return {"verify": _verify, "convert": _convert, "list": _list, "show": _show}[args.command](args)


def _verify(args: argparse.Namespace) -> int:
    from model_zoo.verify import card

    rows = card(args.file)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        for key, value in rows.items():
            for line in value if isinstance(value, list) else [value]:
                print(f"{key:>16}  {line}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from model_zoo.backbone import save
    from model_zoo.load import load

    target = export.get(args.to) if args.to else None
    written = [args.output, *(export.sidecars(args.output) if target else ())]
    existing = [path for path in written if path.exists()]
    if existing and not args.force:
        raise CheckpointError(f"{existing[0]}: exists already; add --force to overwrite it")
    backbone = load(args.file)
    if target:
        backbone = export.in_rgb(backbone)
        target.write(backbone, args.output)
    else:
        save(args.output, backbone.state, backbone.arch, backbone.input)
    for note in backbone.notes:
        print(f"note: {note}")
    print(
        f"{args.output}: {backbone.arch.name}, weights {backbone.weights_sha256[:8]}, from layout '{backbone.format}'"
    )
    for path in written[1:]:
        print(f"{path}: {'read by us' if path == written[1] else f'what {args.to} must be told'}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from model_zoo import entries

    found = [
        entry
        for entry in entries.all_entries()
        if (not args.method or args.method.lower() in entry.method.lower())
        and (not args.task or any(number.cell == args.task for number in entry.published))
    ]
    if args.json:
        print(json.dumps([entry.model_dump(mode="json") for entry in found], indent=2))
        return 0
    for entry in found:
        weights = entry.url or "numbers only"
        print(f"{entry.name:<28} {entry.method:<24} {entry.arch.name:<10} {len(entry.published):>3} numbers  {weights}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from model_zoo import entries

    entry = entries.get(args.name)
    print(f"{entry.name}: {entry.method}, {entry.arch.name}")
    print(f"weights: {entry.url or 'none (' + (entry.no_weights or '') + ')'}")
    for number in entry.published:
        print(f"  {number.cell:<28} {number.metric:<12} {number.value:>7g}  {number.variant or '':<30} {number.source}")
    return 0


if __name__ == "__main__":
    run_cli(main)
