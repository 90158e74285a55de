"""Fixtures for all tests, the `quick` mark for every test that is not slow, and samples of costly parameters."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbench import plugins, trackers
from backbench.data import catalogue

ROOT = Path(__file__).resolve().parent.parent

# The slowest files, slowest first: when they start first, the workers end at about the same time.
LONG = (
    "hardening/test_kills", "transfer/detection/test_processes", "pretrain/test_train", "transfer/test_two_processes",
    "transfer/detection/test_mmdet", "pretrain/test_slurm", "benchmarks/test_speed", "pretrain/test_elastic",
    "hardening/test_detection_kills", "benchmarks/test_suite", "contract/test_engines",
    "transfer/detection/test_draws", "benchmarks/test_run", "test_real_data", "hardening/test_limits",
    "transfer/detection/test_detectron2", "model_zoo/test_variants", "hardening/test_growth", "contract/test_tasks",
    "transfer/detection/test_own_data", "transfer/detection/test_course", "model_zoo/test_external",
    "transfer/detection/test_parity", "benchmarks/test_evidence", "contract/test_methods_on_ranks", "contract/test_methods",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    order = {f"tests/{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))
    for item in items:
        if "slow" not in item.keywords:
            item.add_marker(pytest.mark.quick)
    if os.environ.get("BACKBENCH_HARDENING") != "all":
        _keep_samples(config, items)


def pytest_collection_finish():
    """Exclude what stays to the end, modules and tests, from garbage collection. A full one takes a third of a second."""
    gc.freeze()


def _keep_samples(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep N parameters, chosen by a seed, of each function with the mark `sample(N)`."""
    by_function: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            by_function.setdefault(item.nodeid.partition("[")[0], []).append(item)
    seed = os.environ.get("BACKBENCH_HARDENING_SEED", "0")
    left_out: list[pytest.Item] = []
    for function, its in by_function.items():
        mark = its[0].get_closest_marker("sample")
        wanted = min(mark.args[0] if mark else 0, len(its))
        kept = {id(i) for i in random.Random(f"{seed} {function}").sample(its, wanted)}
        left_out += [i for i in its if id(i) not in kept]
    config.hook.pytest_deselected(items=left_out)
    gone = {id(i) for i in left_out}
    items[:] = [i for i in items if id(i) not in gone]


def pytest_terminal_summary(terminalreporter):
    """Print `hardening: archives 45 tried, 45 held` for each file of hostile inputs, kills and damages that ran."""
    tried: dict[str, list[int]] = {}
    for outcome, held in (("passed", 1), ("failed", 0), ("error", 0)):
        for report in terminalreporter.getreports(outcome):
            file = report.nodeid.partition("::")[0]
            if file.startswith("tests/hardening/"):
                tried.setdefault(Path(file).stem.removeprefix("test_"), []).append(held)
    for name, outcomes in sorted(tried.items()):
        terminalreporter.write_line(f"hardening: {name} {len(outcomes)} tried, {sum(outcomes)} held")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of small real data sets; skips the test without one."""
    place = os.environ.get("BACKBENCH_REAL_DATA")
    if not place:
        pytest.skip("BACKBENCH_REAL_DATA is not set: no real data here")
    return Path(place)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """`train` and `val` with 3 classes of 8 and 4 images, 40x48 pixels; a class has its own brightness."""
    return make_image_folder(tmp_path / "images")


def make_image_folder(root: Path, *, train: int = 8, val: int = 4, classes: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (40, 48, 3)) + 60 * label
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg")
    return root


@pytest.fixture
def warm_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `run_all` start cells as forks of a process that has imported torch."""
    import warm

    monkeypatch.setattr("backbench.processes.start", warm.start)


@pytest.fixture(autouse=True)
def _no_data_of_a_test_before() -> Iterator[None]:
    """Forget the data sets that a test names by `--data` and the folders that it includes."""
    yield
    catalogue.OWN.clear()
    os.environ.pop(plugins.VARIABLE, None)
    os.environ.pop(trackers.VARIABLE, None)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A SLURM of two nodes on this machine, which the environment names; skips where it is not installed."""
    import cluster

    if reason := cluster.missing():
        pytest.skip(reason)
    with cluster.running(tmp_path_factory.mktemp("slurm")) as one, pytest.MonkeyPatch.context() as patch:
        for name, value in one.environment.items():
            patch.setenv(name, value)
        yield one
