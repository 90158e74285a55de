"""Image folders and shards: the same samples on any number of ranks and workers, also after a kill in mid-epoch."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import shards
import torch
from pretraining import KILL_AT_STEP, end, start_child, stderr_of

from pretrain import data
from pretrain.config import PretrainConfig
from pretrain.data import EpochSampler, make_loader, open_split
from pretrain.plan import forecast
from pretrain.train import train

IMAGES, BATCH = 37, 12  # three steps an epoch, and one image that comes in other epochs
RANKS, WORKERS = (1, 2, 3, 4), (0, 1, 2, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a layout, all with the same images in the same order; not to be changed."""
    place = tmp_path_factory.mktemp("shards")
    return functools.cache(lambda layout: shards.write(place / layout, layout, IMAGES))


@pytest.fixture
def config(root, recipe, tmp_path, monkeypatch) -> Callable[..., PretrainConfig]:
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_worker", lambda _number: torch.set_num_threads(1))

    def of(layout: str, *overrides: str) -> PretrainConfig:
        return recipe(root(layout), f"data.name={layout}", f"optim.batch={BATCH}", "data.size=16", *overrides)

    return of


def place_on(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(data, "rank", lambda: rank)
    monkeypatch.setattr(data, "world_size", lambda: ranks)


@pytest.mark.parametrize("layout", shards.LAYOUTS)
def test_every_layout_opens_with_the_same_images_and_labels(config, layout):
    split, folder = (open_split(config(name).data) for name in (layout, "imagefolder"))
    assert (len(split), split.classes) == (IMAGES, shards.CLASSES)
    assert split.labels.tolist() == folder.labels.tolist()
    for index in range(IMAGES):
        assert (split.source.rgb(index) == folder.source.rgb(index)).all()


@pytest.mark.parametrize("layout", ["webdataset", "hf_parquet"])
def test_the_plan_counts_the_images_of_shards(config, tmp_path, layout):
    assert f"# {IMAGES // BATCH} steps" in forecast(config(layout), tmp_path / "out")
    absent = config(layout).model_copy(update={"data": config(layout).data.model_copy(update={"root": None})})
    assert "data.root is not set; give data.root=DIR, the folder of your images" in forecast(absent, tmp_path / "out")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("start", [0, 4])
def test_ranks_share_every_image_of_the_full_batches_once(monkeypatch, ranks, start):
    alone = list(EpochSampler(IMAGES, BATCH, 0, start, 9))
    shares = []
    for rank in range(ranks):
        place_on(monkeypatch, rank, ranks)
        shares.append(list(EpochSampler(IMAGES, BATCH, 0, start, 9)))
    together = [[key for share in shares for key in share[step]] for step in range(9 - start)]
    assert together == alone
    for epoch in range(-(-start // 3), 3):
        seen = sorted(index for step in together for number, index in step if number == epoch)
        assert len(seen) == len(set(seen)) == IMAGES - 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("layout", shards.LAYOUTS)
@pytest.mark.sample(1)
def test_ranks_and_workers_load_the_same_views_from_any_step(config, monkeypatch, layout):
    def loaded(workers: int, rank: int, ranks: int, start: int) -> list[torch.Tensor]:
        place_on(monkeypatch, rank, ranks)
        given = config(layout, f"data.workers={workers}")
        return [batch.views[0] for batch in make_loader(split, given, start=start, stop=6, pin=False)]

    split = open_split(config(layout).data)
    whole = loaded(0, 0, 1, 0)
    assert len(whole) == 6
    for ranks, workers in zip(RANKS, WORKERS, strict=True):
        shares = [loaded(workers, rank, ranks, 1) for rank in range(ranks)]
        for step, parts in enumerate(zip(*shares, strict=True), start=1):
            assert torch.equal(torch.cat(parts), whole[step])
    assert torch.equal(torch.stack(loaded(3, 0, 1, 4)), torch.stack(whole[4:])), "more workers than batches"


@pytest.mark.slow
def test_a_run_on_shards_killed_in_mid_epoch_ends_with_the_weights_of_one_on_a_folder(config, tmp_path):
    steps = ("optim.epochs=2", "run.checkpoint_every=2")
    train(config("imagefolder", *steps), tmp_path / "folder")
    shards_config, out = config("webdataset", "data.workers=2", *steps), tmp_path / "shards"
    killed = start_child(shards_config, out, before=KILL_AT_STEP.format(step=5))
    killed.join(120)
    end([killed])
    assert killed.exitcode == -signal.SIGKILL, stderr_of(killed, out)
    assert torch.load(out / "last.ckpt")["step"] == 4, "in the second epoch of three steps each"
    train(shards_config, out, resume=True)
    folder, resumed = (torch.load(tmp_path / name / "last.ckpt") for name in ("folder", "shards"))
    for network in ("online", "target"):
        assert folder[network].keys() == resumed[network].keys()
        for name, tensor in folder[network].items():
            assert torch.equal(tensor, resumed[network][name]), name
