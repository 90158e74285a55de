"""`python -m model_zoo verify|convert|list|show|download`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from backbench import plugins
from backbench.errors import BackbenchError, CheckpointError, run_cli, writing
from backbench.printable import printable
from model_zoo import export
from model_zoo.choice import add_options, of_arguments

if TYPE_CHECKING:
    from model_zoo.entries import Entry


def parser(prog: str = "python -m model_zoo") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=prog, description="Checkpoints in, checked backbones out.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="describe a checkpoint and check that it is sound")
    verify.add_argument("file", help="a checkpoint, https://..., zoo:NAME, timm:NAME or module:function")
    verify.add_argument("--json", action="store_true")
    add_options(verify)
    convert = commands.add_parser(
        "convert", help="write a checkpoint of any known layout as model.pth or for an engine"
    )
    convert.add_argument("file", help="a checkpoint, https://... or zoo:NAME")
    convert.add_argument("--to", metavar="ENGINE", help=f"write for {' or '.join(export.names())}, with its settings")
    convert.add_argument("-o", "--output", type=Path, required=True)
    convert.add_argument("--force", action="store_true", help="overwrite the output")
    add_options(convert)
    listing = commands.add_parser("list", help="published backbones")
    listing.add_argument("--method", help="only methods whose name contains this")
    listing.add_argument("--task", help="only entries with a number for this cell")
    listing.add_argument("--json", action="store_true")
    show = commands.add_parser("show", help="an entry's card with its published numbers")
    show.add_argument("name")
    show.add_argument("--json", action="store_true")
    down = commands.add_parser("download", help="fetch and check weights; resumes where it stopped")
    down.add_argument("name", nargs="*", help="entries, see list")
    down.add_argument("--all", action="store_true", help="every entry that a program can fetch")
    down.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="download to DIR instead of the cache (usable as BACKBENCH_ZOO or as a mirror)",
    )
    for command in commands.choices.values():
        plugins.add_option(command)
    return parser


def main(argv: list[str] | None = None, *, prog: str = "python -m model_zoo") -> int:
    """Run a sub-command and return the exit code."""
    args = parser(prog).parse_args(argv)
    known = {"verify": _verify, "convert": _convert, "list": _list, "show": _show, "download": _download}
    return known[args.command](args)


def _verify(args: argparse.Namespace) -> int:
    from model_zoo.verify import card

    rows = card(args.file, of_arguments(args))
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
    sidecars = export.sidecars(args.output)
    written = [args.output, *(sidecars if target else ())]
    existing = [path for path in (args.output, *sidecars) if path.exists()]
    if existing and not args.force:
        raise CheckpointError(f"{existing[0]}: exists already; add --force to overwrite it")
    backbone = load(args.file, choice=of_arguments(args))
    if not backbone.is_resnet:
        raise CheckpointError(
            f"{args.file}: only ResNets can be converted; {backbone.arch.name} is used as it is, by --ckpt"
        )
    if target:
        backbone = export.in_rgb(backbone)
        target.write(backbone, args.output)
    else:
        save(args.output, backbone.state, backbone.arch, backbone.input)
        for path in set(sidecars) & set(existing):  # they describe the overwritten file
            with writing(path):
                path.unlink()
            print(f"{printable(path, 1000)}: removed, it described the overwritten file")
    for note in backbone.notes:
        print(f"note: {note}")
    origin = f"weights {backbone.weights_sha256[:8]}, from layout '{backbone.format}'"
    print(f"{printable(args.output, 1000)}: {backbone.arch.name}, {origin}")
    for path in written[1:]:
        print(f"{printable(path, 1000)}: {'read by backbench' if path == written[1] else f'settings for {args.to}'}")
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
    name, method = (max((len(getattr(entry, field)) for entry in found), default=0) for field in ("name", "method"))
    for entry in found:
        weights = entry.url or (f"see {', '.join(entry.see)}" if entry.see else "numbers only")
        weights = weights if entry.url or not entry.has_weights else "a file that you make"
        numbers = f"{len(entry.published):>3} {'number ' if len(entry.published) == 1 else 'numbers'}"
        row = f"{entry.name:<{name}}  {entry.method:<{method}}  {entry.arch.name}  {numbers}  {weights}"
        print(row + (" (by hand)" if entry.by_hand else "") + ("  train: yes" if entry.train else ""))
    return 0


def _show(args: argparse.Namespace) -> int:
    from model_zoo import entries
    from model_zoo.architecture import architecture_fields

    entry = entries.get(args.name)
    if args.json:
        print(json.dumps(entry.model_dump(mode="json"), indent=2))
        return 0
    print(f"{entry.name}: {entry.method}, {architecture_fields(entry.arch)}")
    for label, value in _card(entry):
        print(f"{label:>14}  {value}")
    width = max((len(number.setting) for number in entry.published), default=0)
    for number in entry.published:
        print(f"  {number.cell:<28} {number.metric:<12} {number.value:>7g}  {number.setting:<{width}} {number.source}")
    return 0


def _card(entry: Entry) -> list[tuple[str, str]]:
    """Return (label, value) rows about an entry's weights."""
    recipe = ", ".join(f"{value} {key}" for key, value in entry.recipe.model_dump().items() if value)
    rows = [("pretrained on", entry.pretrained_on + (f" ({recipe})" if recipe else ""))]
    if not entry.has_weights:
        rows.append(("weights", f"none ({entry.no_weights})"))
        rows += [("train", f"backbench pretrain --config {entry.train}")] if entry.train else []
        return rows + ([("see", ", ".join(entry.see))] if entry.see else [])
    from model_zoo.fetch import pins

    spec = entry.input
    known = {"sha256": entry.sha256, "sha256 begins": entry.sha256_prefix, "md5 begins": entry.md5_prefix}
    pin = pins.read().get(entry.name, {}).get("sha256")
    checksums = [f"{name} {value}" for name, value in known.items() if value] + ([f"pinned {pin}"] if pin else [])
    place = entry.url or f"a file that you make, {entry.file} in BACKBENCH_ZOO"
    rows += [("weights", place), *(("mirror", mirror) for mirror in entry.mirrors)]
    rows += [("by hand", entry.by_hand)] if entry.by_hand else []
    rows += [
        ("checksum", "; ".join(checksums) or "unknown until first download, then pinned"),
        ("size", f"{entry.size_mb:g} MB" if entry.size_mb else "not stated"),
        ("layout", entry.format or "not stated; recognised when read"),
        ("input", f"{spec.order.upper()}, {spec.size} px, mean {list(spec.mean)}, std {list(spec.std)}"),
        ("licence", entry.licence or "not stated"),
        ("read in", entry.source or "not stated"),
    ]
    return rows + [("note", note) for note in entry.notes]


def _download(args: argparse.Namespace) -> int:
    from backbench.progress import say
    from model_zoo import entries, fetch

    if bool(args.name) == args.all:
        raise BackbenchError("give names of entries, or --all; `python -m model_zoo list` shows them")
    wanted = [entries.get(name) for name in args.name]
    if args.all:
        wanted = [entry for entry in entries.all_entries() if entry.has_weights and fetch.places(entry)]

    def tell(entry: Entry, found: Path | BackbenchError) -> None:
        print(f"{entry.name}  {found}") if isinstance(found, Path) else say(f"FAILED {entry.name}: {found}")

    found = fetch.fetch_all(wanted, args.to, tell)
    return int(any(isinstance(result, BackbenchError) for result in found.values()))


if __name__ == "__main__":
    run_cli(main, single=True)
