"""The embedded default: rendered scenes in the real layouts, made on first use, the same on every machine.

The folder made is a data root: `imagenet/` and `imagenet100/` (image folders), `voc/VOCdevkit/VOC2007/` (XML, per-class
lists, difficult objects), `coco/` (polygons, gaps in the category ids), `places205/` (csv), `inat18/` (JSON),
`stl10/stl10_binary/` (raw pixels, folds),
`voc12/VOCdevkit/VOC2012/` (masks with a class for each pixel).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from backbench.errors import writing
from backbench.files.atomic import make_folder
from backbench.files.folders import cache_folder
from backbench.files.locks import held
from backbench.progress import say

VERSION = 7
MARKER = "DEMO.json"  # in the data root, with the version: a folder without it is incomplete


def root() -> Path:
    """Return the demo's data root; make it when it does not exist. Several processes may call this at once.

    Raises:
        BackbenchError: the cache folder cannot be written.
    """
    final = cache_folder() / f"demo-v{VERSION}"
    if (final / MARKER).exists():
        return final
    from backbench.data.demo.write import make  # OpenCV: only where scenes are rendered

    make_folder(cache_folder())
    with writing(final), held(final.with_name(f"{final.name}.lock")):
        if (final / MARKER).exists():
            return final
        say(f"making the demo data set in {final} (once, a few seconds)")
        temporary = Path(tempfile.mkdtemp(dir=cache_folder(), prefix="demo-"))
        try:
            make(temporary)
            marker = {"version": VERSION, "what": "rendered demo scenes, not photographs"}
            (temporary / MARKER).write_text(json.dumps(marker))
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def is_made() -> bool:
    """Return whether the demo's data are in the cache."""
    return (cache_folder() / f"demo-v{VERSION}" / MARKER).exists()


def is_demo(folder: Path) -> bool:
    """Return whether a data set's folder is in a demo data root."""
    return any((parent / MARKER).exists() for parent in (Path(folder), *list(Path(folder).parents)[:3]))
