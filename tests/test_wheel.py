"""The wheel works without the checkout: build it from the sources, install it into a new environment, run it elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "measured" / "demo"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of packages of a new environment with the wheel. It reads the libraries of this one, not its packages."""
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    source.mkdir()
    skipped = shutil.ignore_patterns("__pycache__", "measured", "*.egg-info")
    for part in ("backbench", "model_zoo", "pretrain", "transfer", "benchmarks", "configs"):
        shutil.copytree(ROOT / part, source / part, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(base), str(source)]
    subprocess.run(wheel, check=True)
    shutil.rmtree(source)
    (found,) = base.glob("backbench-*.whl")
    venv.create(base / "new", with_pip=False)
    python = base / "new" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-index", "--no-deps", str(found)], check=True)
    (site,) = (base / "new" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # its own .pth files are not read
    return site


def alone() -> dict[str, str]:
    """The environment variables without a path to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture
def backbench(installed, tmp_path):
    """Run the command from an empty folder; returns what it printed."""

    def run(*words: str) -> str:
        command = [str(installed.parents[2] / "bin" / "backbench"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=alone(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_every_data_file_is_in_the_wheel(installed):
    for part in ("configs", "model_zoo", "benchmarks/report", "benchmarks/board", "transfer", "pretrain", "backbench"):
        for file in sorted((ROOT / part).rglob("*")):
            if file.suffix in (".yaml", ".j2", ".css", ".js", ".typed"):
                place = file.relative_to(ROOT)
                place = Path("backbench") / place if part == "configs" else place
                assert (installed / place).read_bytes() == file.read_bytes()


def test_nothing_measured_is_in_the_wheel(installed):
    assert not (installed / "benchmarks" / "measured").exists()
    assert not list(installed.rglob("*.npz"))


def test_zoo_and_plan_know_the_shipped_files(backbench):
    assert "moco_v2_800ep" in backbench("zoo", "list", "--method", "moco")
    assert "MoCo" in backbench("zoo", "show", "moco_v2_800ep")
    assert "imagenet_knn.temperature" in backbench("run", "--show", "imagenet_knn")
    assert "imagenet_knn" in backbench("run", "--ckpt", "random:resnet18", "--tasks", "imagenet_knn", "--dry-run")
    assert "optim:" in backbench("pretrain", "--dry-run")


def test_a_report_is_rendered_from_a_record(backbench, tmp_path):
    record = next(iter(sorted(RECORD.rglob("seed0.json"))))
    place = tmp_path / "results" / record.relative_to(RECORD)
    place.parent.mkdir(parents=True)
    shutil.copy(record, place)
    assert "report:" in backbench("report", "results")
    assert "<html" in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")


def test_the_package_that_runs_is_the_installed_one(installed, tmp_path):
    code = "from backbench.files.folders import configs_folder; print(configs_folder())"
    done = subprocess.run(
        [str(installed.parents[2] / "bin" / "python"), "-c", code],
        cwd=tmp_path,
        env=alone(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(installed / "backbench" / "configs")
