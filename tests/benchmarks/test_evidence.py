"""Studies of the paper's claims: their recipes, the interval over seeds and items, the verdict, and a whole small study."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from pretraining import smooth_image

from backbench.errors import BackbenchError, ConfigError
from benchmarks.evidence import CELLS, UNTRAINED, collected, runs, study, tables, verdicts
from benchmarks.evidence import __main__ as command
from benchmarks.evidence.verdicts import Verdict
from benchmarks.report import readme
from benchmarks.statistics.crossed import Crossed, crossed
from pretrain import run as pretraining
from pretrain.plan import plan_steps

# ---------------------------------------------------------------- the studies that were run

EVIDENCE = readme.MEASURED / "evidence"


@pytest.mark.parametrize("file", sorted(EVIDENCE.glob("*.json")), ids=lambda file: file.stem)
def test_the_numbers_of_a_study_follow_from_its_records(file):
    made = json.loads(file.read_text())
    measured = verdicts.Measured(EVIDENCE / "results")
    names = {}
    for result in made["results"]:
        names[result["budget"], result["arm"]] = result["runs"]
        for cell in CELLS:
            assert result[cell] == [measured.right(run, cell).mean() for run in result["runs"]]
        if result["arm"] != UNTRAINED:
            assert result["monitored"] == [collected._last(EVIDENCE / "runs" / run) for run in result["runs"]]
    for verdict in made["verdicts"]:
        claim = made["claims"][verdict["claim"]]
        better, worse = (
            np.stack([measured.right(run, verdict["cell"]) for run in names[verdict["budget"], claim[side]]])
            for side in ("better", "worse")
        )
        again = Verdict(verdict["claim"], verdict["budget"], verdict["cell"], crossed(better - worse))
        assert verdict["interval"] == pytest.approx(asdict(again.interval)) and verdict["verdict"] == again.word


@pytest.mark.parametrize("file", sorted(EVIDENCE.glob("*.json")), ids=lambda file: file.stem)
def test_a_study_that_was_run_is_the_one_that_is_shipped(file):
    made = json.loads(file.read_text())
    shipped = study.read(file.stem).model_dump(mode="json")
    assert set(made["budgets"]) <= set(shipped.pop("budgets"))
    assert {key: made[key] for key in shipped} == shipped


# ---------------------------------------------------------------- studies


@pytest.mark.parametrize("name", study.names())
def test_every_study_says_before_it_is_run_what_would_refute_it(name, tmp_path):
    read = study.read(name)
    assert read.title and read.source and read.claims
    assert all(claim.text and claim.refuted_by for claim in read.claims)
    trainings = runs.of(read, tmp_path)
    assert len(trainings) == read.seeds * len(read.budgets) * len(read.arms)
    assert len({run.name for run in trainings if run.seed == 0 and run.budget == read.budgets[0]}) == len(read.arms)


def made(**fields) -> study.Study:
    arms = {"two": ["method.views=2"], "four": ["method.views=4"]}
    claim = {"text": "Four are better.", "refuted_by": "they are not", "better": "four", "worse": "two"}
    return study.build(
        study.Study, {"title": "T", "source": "S", "epochs": 8, "arms": arms, "claims": [claim], **fields}
    )


def test_equal_views_give_an_arm_with_twice_the_views_half_the_steps(tmp_path):
    both = made(budgets=["steps", "views"])
    steps = {
        (run.budget, run.arm): plan_steps(run.config, 3000).total for run in runs.of(both, tmp_path) if run.seed == 0
    }
    assert steps["steps", "two"] == steps["steps", "four"] == steps["views", "two"] == 2 * steps["views", "four"]
    names = {(run.budget, run.arm, run.seed): run.name for run in runs.of(both, tmp_path)}
    assert names["steps", "two", 0] == names["views", "two", 0], "one pretraining serves both budgets"
    assert names["steps", "two", 0] != names["steps", "two", 1]
    assert names == {(run.budget, run.arm, run.seed): run.name for run in runs.of(both, tmp_path / "elsewhere")}


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (
            {"claims": [{"text": "", "refuted_by": "", "better": "for", "worse": "two"}]},
            "'for' is not an arm; did you mean 'four'",
        ),
        ({"arms": {"untrained": []}}, "'untrained' is the name of the untrained network"),
        ({"seeds": 1}, "'seeds': must be greater than or equal to 2"),
        ({"budgets": ["time"]}, "budgets"),
        ({"epocs": 3}, "unknown key 'epocs'; did you mean 'epochs'"),
    ],
)
def test_a_wrong_study_is_refused(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        made(**fields)


def test_an_unknown_study_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="no study 'ablaton'; did you mean 'ablation'"):
        study.read("ablaton")


def test_a_folder_without_splits_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    for words, start in ([], ""), (["--data", str(tmp_path)], f"{tmp_path} has no folder val: "):
        with pytest.raises(BackbenchError) as caught:
            command.main(["ablation", *words])
        assert str(caught.value) == f"{start}give --data DIR, an image folder with the folders train and val"


# ---------------------------------------------------------------- the interval


def test_the_interval_covers_a_true_difference_as_often_as_it_says():
    """Seeds and items are drawn from normal distributions; 95% of the intervals must contain the true mean."""
    generator, inside = np.random.default_rng(0), 0
    for _ in range(600):
        seeds, items = generator.normal(0, 1.0, (3, 1)), generator.normal(0, 5.0, (1, 60))
        found = crossed(0.7 + seeds + items + generator.normal(0, 5.0, (3, 60)))
        inside += found.low <= 0.7 <= found.high
    assert 0.94 <= inside / 600 <= 1.0


def test_the_interval_by_hand():
    differences = np.array([[1.0, 3.0, 2.0], [5.0, 3.0, 4.0]])
    of_seeds, of_items = 2.0 / 2, 0.0 / 3  # variances of the seeds' means 2 and 4, and of the items' means, all 3
    found = crossed(differences)
    assert found.difference == 3.0 and (found.seeds, found.items) == (2, 3)
    assert found.high - found.difference == pytest.approx(12.7062 * (of_seeds + of_items) ** 0.5, rel=1e-4)
    assert crossed(np.full((2, 4), 1.5)) == Crossed(1.5, 1.5, 1.5, 2, 4)
    with pytest.raises(ValueError, match="needs 2 of each at least; there are 1 and 3"):
        crossed(differences[:1])


@pytest.mark.parametrize(
    "low, high, word", [(0.1, 2.0, "holds"), (-2.0, -0.1, "does not hold here"), (-0.1, 2.0, "not decided")]
)
def test_the_verdict_is_where_the_interval_lies(low, high, word):
    assert Verdict(0, "views", "imagenet_knn", Crossed((low + high) / 2, low, high, 3, 1000)).word == word


# ---------------------------------------------------------------- a whole study


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evidence") / "photos"
    for split, images in (("train", 15), ("val", 12)):
        for label in range(2):
            for i in range(images):
                path = root / split / f"class{label}" / f"{i:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(smooth_image(40, 44, seed=1000 * label + i, cells=3 + 3 * label)).save(path)
    return root


@pytest.mark.slow
def test_a_study_trains_measures_decides_and_continues(photos, capsys, monkeypatch, warm_cells):
    fields = [
        "model.hidden=16",
        "model.outputs=8",
        "optim.batch=6",
        "data.workers=0",
        "optim.base_lr=0.5",
        "run.threads=1",
    ]
    claim = {"text": "It learns.", "refuted_by": "it does not", "better": "two", "worse": "untrained"}
    small = made(seeds=2, epochs=0.8, fields=fields, arms={"two": ["method.views=2"]}, claims=[claim])
    file, out = photos.parent / "small.yaml", photos.parent / "out"
    file.write_text(yaml.safe_dump(small.model_dump(mode="json")))
    # in this process: a new one imports torch for every run
    trained = SimpleNamespace(run=lambda commands, **_: [pretraining.main(command[2:]) for command in commands])
    monkeypatch.setattr(runs, "local", trained)
    for module in (collected, runs, tables, verdicts):
        monkeypatch.setattr(module, "CELLS", ("imagenet_knn",))
    words = [str(file), "--data", str(photos), "--out", str(out)]
    assert command.main([*words, "--dry-run"]) == 0
    assert "refuted by: it does not" in (plan := capsys.readouterr().out) and "2 pretrainings, 2 to do" in plan
    assert command.main(words) == 0
    numbers = json.loads((out / "small.json").read_text())
    assert {result["arm"] for result in numbers["results"]} == {"two", "untrained"}
    assert all(len(result[cell]) == 2 for result in numbers["results"] for cell in runs.CELLS)
    by_arm = {result["arm"]: result["imagenet_knn"] for result in numbers["results"]}
    verdict = next(v for v in numbers["verdicts"] if v["cell"] == "imagenet_knn")
    expected = np.mean(by_arm["two"]) - np.mean(by_arm["untrained"])
    assert verdict["interval"]["difference"] == pytest.approx(expected)
    assert verdict["interval"]["items"] == 24 and verdict["verdict"] in tables.markdown(numbers)
    assert "<svg" in (out / "small.svg").read_text()
    capsys.readouterr()
    monkeypatch.setattr(trained, "run", lambda commands, **_: [0 for _ in commands if pytest.fail("trained again")])
    assert command.main(words) == 0
    assert json.loads((out / "small.json").read_text()) == numbers
    for model in out.glob("runs/*/model.pth"):  # as on another machine, which has the records alone
        model.unlink()
    assert command.main([*words, "--dry-run"]) == 0 and "2 pretrainings, 0 to do" in capsys.readouterr().out
    assert command.main(words) == 0
    assert json.loads((out / "small.json").read_text()) == numbers
