"""Damaged resume files of a pretraining: a sentence names the file, and nothing is overwritten."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining import tiny_recipe, write_photos

from backbench.errors import BackbenchError, CheckpointError
from pretrain.train import train


@pytest.fixture(scope="module", autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Return a recipe of 2 steps, and the folder of its finished run."""
    place = tmp_path_factory.mktemp("half")
    config = tiny_recipe(write_photos(place / "photos"), "optim.epochs=0.4")
    train(config, place / "run")
    return config, place / "run"


def flipped(at: float):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(at * len(data))] ^= 0x10
        path.write_bytes(data)

    return damage


def without(name: str, value: object = None):
    def damage(path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        saved.pop(name) if value is None else saved.update({name: value})
        torch.save(saved, path)

    return damage


def cut(share: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": cut(0.0),
    "one byte": lambda path: path.write_bytes(b"P"),
    "half": cut(0.5),
    "all but its end": cut(0.999),
    **{f"a bit at {at}": flipped(at) for at in (0.1, 0.37, 0.5, 0.81, 0.9)},
    "text": lambda path: path.write_text("last\n"),
    "a web page": lambda path: path.write_text("<html>404</html>"),
    "another program's": lambda path: torch.save({"state_dict": {}, "epoch": 3}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "of numpy": lambda path: np.savez(path.open("wb"), x=np.zeros(3)),
    "a folder": as_folder,
    **{f"without {name}": without(name) for name in ("step", "online", "target", "optimizer", "config", "data", "corrupt")},
    "a word as step": without("step", "three"),
    "a negative step": without("step", -1),
    "an empty network": without("online", {}),
    "an empty optimiser": without("optimizer", {}),
    "a word as configuration": without("config", "demo"),
    "another recipe's network": without("target", {"weight": torch.zeros(3)}),
    "another data set's probe": without("probe", {name: torch.zeros(3) for name in ("weight", "momentum", "tally")}),
    "a word as probe": without("probe", "linear"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_refused_and_stays(half, tmp_path, damage):
    config, finished = half
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    damage(out / "last.ckpt")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"}
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        train(config, out, resume=True)
    assert {path: path.read_bytes() for path in before} == before


LINES = {
    "a cut line": b'{"step": 0, "loss": 1.0}\n{"step": 1, "lo',
    "words": b'hello\n{"step": 0, "loss": 1.0}\n',
    "no step": b'{"epoch": 3}\n{"step": 0, "loss": 1.0}\n',
    "a list": b'[1, 2]\n{"step": 0, "loss": 1.0}\n',
    "a word as step": b'{"step": "0"}\n{"step": 0, "loss": 1.0}\n',
    "null": b'null\n{"step": 0, "loss": 1.0}\n',
    "a byte order mark": b'\xef\xbb\xbf{"step": 0, "loss": 1.0}\n',
    "no UTF-8": b'\xff\xfe\n{"step": 0, "loss": 1.0}\n',
    "zeros of a crashed disk": bytes(99) + b'\n{"step": 0, "loss": 1.0}\n',
    "deep": b"[" * 99999 + b'\n{"step": 0, "loss": 1.0}\n',
    "empty": b"",
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES.keys())
def test_foreign_lines_among_the_metrics_stop_nothing(tmp_path, capsys, lines):
    from pretrain.checkpoint import cut_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines)
    cut_metrics(path, 1)
    assert path.read_text() == ('{"step": 0, "loss": 1.0}\n' if lines else "")
    said = capsys.readouterr().err
    assert ("dropped" in said) == ((lines[:1] != b"{" and lines[:3] != b"\xef\xbb\xbf" and bool(lines)) or b"epoch" in lines
                                    or b'"0"' in lines)  # fmt: skip


def in_the_way(name: str, folder: bool):
    def prepare(out: Path) -> None:
        out.mkdir()
        (out / name).mkdir() if folder else (out / name).write_text("mine")

    return prepare


PLACES = {
    "the folder is a file": lambda out: out.write_text("mine"),
    "the folder is a broken link": lambda out: out.symlink_to("/nothing/there"),
    "the folder is a circle of links": lambda out: out.symlink_to(out),
    "the folder is a device": lambda out: out.symlink_to("/dev/null"),
    "TensorBoard's folder is a file": in_the_way("tensorboard", folder=False),
    "the configuration is a folder": in_the_way("config.yaml", folder=True),
    "the lock is a folder": in_the_way(".1.lock", folder=True),
    "the metrics are a folder": in_the_way("metrics.jsonl", folder=True),
}


@pytest.mark.parametrize("prepare", PLACES.values(), ids=PLACES.keys())
def test_a_place_that_cannot_be_written_is_a_sentence(half, tmp_path, prepare):
    config, _ = half
    prepare(tmp_path / "run")
    with pytest.raises(BackbenchError):
        train(config, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "model.pth").exists()


def test_a_name_too_long_is_a_sentence(half, tmp_path):
    with pytest.raises(BackbenchError, match="too long"):
        train(half[0], tmp_path / ("x" * 300))


@pytest.mark.parametrize("kilobytes", [0, 1, 100, 40000])
def test_a_limit_on_the_size_of_files_is_a_sentence(half, tmp_path, kilobytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, before[1]))
    try:
        with pytest.raises(BackbenchError, match="ulimit -f"):
            train(half[0], tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert train(half[0], tmp_path / "run", resume=True).exists(), "without the limit, it resumes"
    assert not list((tmp_path / "run").glob(".*.tmp"))
