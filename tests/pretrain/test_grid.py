"""Comma lists: the points of their product, the runs, and the table of their logs."""

from __future__ import annotations

import json

import pytest
from pretraining import tiny_recipe

from backbench.config import dump
from backbench.errors import BackbenchError, ConfigError
from backbench.files.locks import held
from benchmarks import status
from pretrain import grid, run, table
from pretrain.config import load
from pretrain.train import train

TABLE_11 = ["method.views=2,4,8", "method.lambda_s=0,0.002,0.004,0.01", "method.lambda_b=0,0.25,0.5,1.0,2.0"]


def names(*words: str, recipe: str = "demo") -> list[str]:
    return [point.name for point in grid.points(recipe, words)]


def test_the_papers_table_11_is_sixty_recipes():
    found = grid.points("imagenet100_r18", [*TABLE_11, "optim.epochs=300", "data.root=/data/imagenet100"])
    recipes = [load("imagenet100_r18", list(point.words)) for point in found]
    expected = [(k, s, b) for k in (2, 4, 8) for s in (0, 0.002, 0.004, 0.01) for b in (0, 0.25, 0.5, 1.0, 2.0)]
    assert [(r.method.views, r.method.lambda_s, r.method.lambda_b) for r in recipes] == expected
    assert {r.optim.epochs for r in recipes} == {300}
    assert len({point.name for point in found}) == 60
    assert found[1].name == "views-2-lambda_s-0-lambda_b-0.25"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method.views=4"], []),
        (["views.scale=[0.1, 1.0]"], []),  # one value of a field with two numbers
        (["views.scale=[0.1, 1.0],[0.2, 1.0]"], ["scale-0.1_1.0", "scale-0.2_1.0"]),
        (["data.root=/a,b"], []),  # a folder's name may have a comma
        (["run.amp=none,bf16"], ["amp-none", "amp-bf16"]),
        (["method.name=byol,msbreg", "run.seed=0,1"], [f"name-{n}-seed-{s}" for n in ("byol", "msbreg") for s in "01"]),
        (["method.views=2,4", "method.views=4"], []),  # the last word of a field counts
        (["method.views=4", "method.views=2,3"], ["views-2", "views-3"]),
        (["views.hue=0.1,0.2", "views.scale=[0.1, 1],[0.2, 1]"],
         [f"hue-{h}-scale-{s}_1" for h in (0.1, 0.2) for s in (0.1, 0.2)]),
    ],
)  # fmt: skip
def test_a_comma_outside_brackets_makes_a_grid(words, expected):
    assert names(*words) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["method.views=2,"], "method.views=2,: a value of the list is empty"),
        (["method.views=2,2"], "views-2 and views-2 are the same recipe"),
        (["method.lambda_b=0.5,0.50"], "lambda_b-0.50 and lambda_b-0.5 are the same recipe"),
        (["method.vews=2,4"], "unknown key 'method.vews'; did you mean 'method.views'"),
        (["method.views=2,1"], "'method.views': must be greater than or equal to 2"),
        (
            ["run.seed=" + ",".join(map(str, range(40))), "method.views=" + ",".join(map(str, range(2, 32)))],
            "1200 points",
        ),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_runs(words, sentence):
    with pytest.raises(ConfigError) as refused:
        names(*words)
    assert sentence in str(refused.value)


@pytest.fixture
def recipe_file(shared_photos, tmp_path) -> str:
    (tmp_path / "r.yaml").write_text(dump(tiny_recipe(shared_photos, "optim.epochs=0.4", "run.knn_every=0.4")))
    return str(tmp_path / "r.yaml")


def test_a_dry_run_lists_every_point_and_writes_nothing(recipe_file, tmp_path, capsys):
    words = ["--config", recipe_file, "--out", str(tmp_path / "grid"), "method.lambda_b=0.0,0.5"]
    assert run.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "lambda_b-0.0: method.lambda_b=0.0\n# 2 steps, 5 an epoch" in said and "2 runs, 0 done" in said
    assert f"{tmp_path / 'grid' / 'lambda_b-0.5'}" in said
    assert run.main([*words, "--dry-run", "--launcher", "slurm", "--slurm", "gpus=2 time=2-0"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-1%2\n" in said and "#SBATCH --gpus-per-node=2\n" in said
    for number, value in enumerate(("0.0", "0.5")):
        line = next(line for line in said.splitlines() if line.startswith(f"{number}: lambda_b-{value}: "))
        assert "job.py 2 " in line and "--resume" in line and line.endswith(f"method.lambda_b={value}")
    assert not (tmp_path / "grid").exists()


def test_one_run_is_one_job_of_slurm(recipe_file, tmp_path, capsys):
    words = [
        "--config",
        recipe_file,
        "--out",
        str(tmp_path / "one"),
        "--launcher",
        "slurm",
        "--slurm",
        "nodes=2 gpus=8",
    ]
    assert run.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n" in said
    line = next(line for line in said.splitlines() if line.startswith("0: one: "))
    assert "torch.distributed.run --nnodes=2 --nproc-per-node=8 --max-restarts=3" in line
    assert f"--out {tmp_path / 'one'} --resume" in line and "--grid" not in line


def test_ranks_of_torchrun_start_no_grid(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr("backbench.processes._under_torchrun", True)
    words = ["--config", recipe_file, "--out", str(tmp_path / "grid")]
    for more in (["run.seed=0,1"], ["--launcher", "slurm"]):
        with pytest.raises(ConfigError, match="run this without torchrun"):
            run.main([*words, *more])
    with pytest.raises(ConfigError, match="--slurm is for --launcher slurm"):
        run.main([*words, "--slurm", "gpus=1"])
    assert not (tmp_path / "grid").exists()


@pytest.mark.slow
def test_a_grid_trains_every_point_and_ends_in_one_table(recipe_file, tmp_path, capfd, warm_cells):
    out = tmp_path / "grid"
    words = ["--config", recipe_file, "--out", str(out), "optim.base_lr=20.0,1e30"]
    assert run.main([*words, "--jobs", "2"]) == 1  # the second diverges
    said = capfd.readouterr()
    lines = said.out.splitlines()
    monitors = ["loss", "std", "effective_rank", "online_knn20", "online_linear", "online_rankme"]
    assert lines[0].strip("| ").split(" | ") == ["optim.base_lr", "run", "state", "epoch", *monitors]
    assert (out / "table.md").read_text() == said.out and len(lines) == 2 + 2
    good, bad = out / "base_lr-20.0", out / "base_lr-1e30"
    assert "base_lr-20.0: step 1/2" in said.err and "step 1/2" in (good / "log.txt").read_text()
    rows = {row["run"]: row for row in table.rows(out)}
    assert rows[good.name]["state"] == "done" and rows[good.name]["epoch"] == 0.4
    assert rows[bad.name]["state"].startswith("failed: the loss is not finite")
    logged = [json.loads(line) for line in (good / "metrics.jsonl").read_text().splitlines()]
    assert rows[good.name]["loss"] == [record["loss"] for record in logged if "loss" in record][-1]
    assert rows[good.name]["online_knn20"] == logged[-1]["online_knn20"]
    train(load(recipe_file, []), tmp_path / "alone")
    assert (good / "model.pth").read_bytes() == (tmp_path / "alone" / "model.pth").read_bytes()

    with pytest.raises(BackbenchError, match="contains a run already; continue all with --resume"):
        run.main(words)
    written = (good / "model.pth").stat().st_mtime_ns
    assert run.main([*words, "--resume"]) == 1
    assert (good / "model.pth").stat().st_mtime_ns == written
    assert "base_lr-20.0: " not in capfd.readouterr().err


def test_a_table_is_of_the_folder_of_a_grid(tmp_path, capsys):
    with pytest.raises(BackbenchError, match=r"holds no grid\.json"):
        table.rows(tmp_path)
    table.write_grid(tmp_path, ["run.seed"], {"seed-0": ["0"], "seed-1": ["1"]})
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "metrics.jsonl").write_text(
        '{"step": 0, "epoch": 0.5, "loss": 1.25}\nnot JSON\n{"step": 1}\n'
    )
    assert table.write(tmp_path) == (
        "| run.seed | run | state | epoch | loss |\n| --- | --- | --- | --- | --- |\n"
        "| 0 | seed-0 | not started |  |  |\n| 1 | seed-1 | not done | 0.5 | 1.250 |\n"
    )
    with held(tmp_path / "seed-1" / ".lock"):
        assert [row["state"] for row in table.rows(tmp_path)] == ["not started", "running"]
    assert table.rows(tmp_path, {"seed-0": "PENDING"})[0]["state"] == "in SLURM's queue: pending"
    assert status.main([str(tmp_path)]) == 0 and status.main([str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith((tmp_path / "table.md").read_text() + "[") and '"loss": 1.25' in shown
    table.write_grid(tmp_path, ["run.seed"], {"seed-2": ["2"]})
    assert [row["run.seed"] for row in table.rows(tmp_path)] == ["0", "1", "2"]
    with pytest.raises(BackbenchError, match=r"holds a grid of run\.seed; give another --out"):
        table.write_grid(tmp_path, ["method.views"], {"views-2": ["2"]})
    table.note_failure(str(tmp_path / "seed-1"), "job 7 ended | badly")
    assert "failed: job 7 ended \\| badly" in table.write(tmp_path)
