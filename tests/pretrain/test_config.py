"""Test the recipes and the errors of a configuration."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pretraining import write_photos

from backbench.config import dump, parse_yaml, read_mapping
from backbench.errors import BackbenchError, ConfigError, DataError
from pretrain import recipes
from pretrain.config import load, recipe
from pretrain.data import EpochSampler
from pretrain.plan import forecast

ALL = recipes.names()
IMAGENET = {"imagenet_r50_100ep": 100, "imagenet_r50_200ep": 200, "imagenet_r50_300ep": 300}


def test_the_papers_recipes_are_there():
    assert {*IMAGENET, "imagenet100_r18", "stl10_r18", "demo"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_loads_and_states_only_what_exists(name):
    config = load(name, [])
    assert config == load(str(recipes.FOLDER / f"{name}.yaml"), [])
    assert config == recipe(read_mapping(recipes.FOLDER / f"{name}.yaml"))


@pytest.mark.parametrize("name", [name for name in ALL if "/" not in name])
def test_msbregs_recipes_follow_section_7(name):
    config = load(name, [])
    assert config.method.name == "msbreg" and config.method.views == 4
    assert (config.method.lambda_s, config.method.lambda_b) == (4e-3, 0.5)
    assert (config.optim.momentum, config.optim.weight_decay) == (0.9, 1e-5)
    assert (config.views.preset, config.views.scale) == ("table9", (0.08, 1.0))


@pytest.mark.parametrize("name", ALL)
def test_a_resolved_recipe_reads_back(name, tmp_path):
    config = load(name, ["run.seed=3"])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(str(tmp_path / "config.yaml"), []) == config
    assert config.run.seed == 3


@pytest.mark.parametrize("name", [name for name in ALL if "/" in name])
def test_recipes_of_other_methods_lie_in_the_methods_folder(name):
    assert load(name, []).method.name == name.split("/")[0]


def test_imagenet_recipes_are_the_papers():
    for name, epochs in IMAGENET.items():
        config = load(name, [])
        assert (config.model.backbone, config.model.stem, config.model.head_sizes()) == ("resnet50", "7x7", (2048, 256))
        assert (config.data.name, config.data.split, config.data.size) == ("imagenet", "train", 224)
        assert (config.optim.base_lr, config.optim.batch, config.optim.epochs) == (0.15, 512, epochs)
        assert (config.optim.warmup_epochs, config.optim.tau_base) == (10, 0.99)
        assert config.peak_lr() == pytest.approx(1.2)  # 0.15 x 512 / 256 x 4


def test_imagenet100_recipe_is_the_papers():
    config = load("imagenet100_r18", [])
    assert (config.model.backbone, config.model.head_sizes()) == ("resnet18", (512, 128))
    assert (config.data.name, config.data.size) == ("imagenet100", 224)
    assert (config.optim.base_lr, config.optim.batch, config.optim.epochs) == (0.4, 512, 320)
    assert (config.optim.warmup_epochs, config.optim.tau_base) == (10, 0.99)
    assert config.peak_lr() == pytest.approx(3.2)


def test_stl10_recipe_is_the_papers():
    config = load("stl10_r18", [])
    assert (config.model.backbone, config.model.stem, config.model.head_sizes()) == ("resnet18", "3x3", (512, 128))
    assert (config.data.name, config.data.split) == ("stl10", "train+unlabeled")
    assert (config.optim.base_lr, config.optim.batch, config.optim.epochs) == (0.5, 512, 320)
    assert config.data.mean == (0.43, 0.42, 0.39) and config.data.std == (0.27, 0.26, 0.27)
    assert config.peak_lr() == pytest.approx(4.0)


@pytest.mark.parametrize("base, batch, views, peak", [(0.3, 256, 2, 0.6), (0.15, 512, 4, 1.2), (1.0, 64, 3, 0.75)])
def test_peak_rate(base, batch, views, peak):
    overrides = [f"optim.base_lr={base}", f"optim.batch={batch}", f"method.views={views}"]
    assert load("demo", overrides).peak_lr() == pytest.approx(peak)


def test_one_view_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match=r"'method\.views': .*greater than or equal to 2.*given: 1"):
        load("demo", ["method.views=1"])


def test_views_per_pass_must_divide_the_views():
    for good in (0, 1, 2, 4):
        assert load("demo", [f"run.views_per_pass={good}"]).run.views_per_pass == good
    for bad in (3, 8):
        with pytest.raises(ConfigError, match=rf"run\.views_per_pass {bad} must divide method\.views 4"):
            load("demo", [f"run.views_per_pass={bad}"])


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("optim.batch=1", r"optim\.batch must be at least 2"),
        ("optim.warmup_epochs=6.5", r"optim\.warmup_epochs must be less than optim\.epochs"),
        ("optim.lr=1", r"unknown key 'optim\.lr'; did you mean 'optim\.base_lr'"),
        ("method.name=nosuch", r"'method\.name': unknown method 'nosuch'; known: .*byol, .*msbreg"),
        ("optim.base_lr=0", r"'optim\.base_lr'.*greater than 0"),
        ("optim.base_lr=.nan", r"optim\.base_lr"),
        ("views.flip=1.5", r"'views\.flip'.*less than or equal to 1"),
        ("optim.batch=64.5", r"'optim\.batch'.*whole number"),
        ("optim.batch", r"override 'optim\.batch' is not of the form key=value"),
    ],
)
def test_what_does_not_fit_is_named(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load("demo", [override])


@pytest.mark.parametrize(
    "overrides",
    [
        ["views.blur_kernel=4"],  # OpenCV takes odd kernels only
        ["views.ratio=[0.0, 1.0]"],  # its logarithm is drawn from
        ["data.std=[0.0, 0.2, 0.2]"],  # divides the pixels
        ["data.size=8"],  # smaller than model.pth can state
        ["model.norm=group", "model.hidden=24"],  # 16 groups
    ],
    ids=lambda overrides: overrides[0].split("=")[0],
)
def test_what_fails_later_is_refused_at_once(overrides):
    field = overrides[-1].split("=")[0]
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        load("demo", overrides)


@pytest.mark.parametrize("asked, meant", [("imagnet_r50_100ep", "imagenet_r50_100ep"), ("stl10-r18", "stl10_r18")])
def test_an_unknown_recipe_names_the_nearest(asked, meant):
    with pytest.raises(ConfigError, match=f"no recipe '{asked}'; did you mean '{meant}'"):
        load(asked, [])


@pytest.mark.parametrize("text", ["", "# a comment\n", "{}\n"])
def test_an_empty_file_is_an_error_and_not_the_demo(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml: the file has no fields; write at least one"):
        load(str(tmp_path / "mine.yaml"), [])


def test_a_field_of_another_method_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'method\.lambda'; did you mean 'method\.lambda_"):
        recipe({"method": {"lambda": 1.0}})
    with pytest.raises(ConfigError, match=r"give the method as method\.name=byol"):
        load("demo", ['method={"name": "byol"}'])


def test_a_recipe_travels_to_a_process_of_its_own():
    config = load("demo", ["method.name=byol", "method.views=2"])
    assert pickle.loads(pickle.dumps(config)) == config


# ---------------------------------------------------------------- --dry-run


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("imagenet_r50_100ep", [], ["# 250200 steps, 2502 an epoch", "data.root is not set", "1,281,167 images"]),
        ("imagenet100_r18", ["data.root=/nowhere"], ["247 an epoch", "no folder /nowhere", "126,689 images"]),
        ("stl10_r18", [], ["205 an epoch", "105,000 images"]),
        ("stl10_r18", ["data.split=fold7"], ["number of steps unknown", "data not checked"]),
        (
            "photos_r18_cpu",
            [],
            ["number of steps unknown: each epoch has (number of images) // 64", "folder of your images"],
        ),
    ],
)
def test_a_forecast_needs_no_data(name, overrides, said):
    config = load(name, overrides)
    text = forecast(config, Path("runs/x"))
    assert all(word in text for word in said), text
    assert recipe(parse_yaml(text)) == config, "the resolved recipe, and comments"


def test_a_forecast_of_the_demo_makes_no_images(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    text = forecast(load("demo", []), Path("runs/demo"))
    assert "31 an epoch" in text and "made when training starts" in text and "2,000 images" in text
    assert list(tmp_path.iterdir()) == []


def test_a_forecast_refuses_what_training_would(tmp_path):
    root = write_photos(tmp_path)
    config = load("photos_r18_cpu", [f"data.root={root}", "optim.batch=6"])
    assert "5 an epoch" in forecast(config, tmp_path) and "not checked" not in forecast(config, tmp_path)
    for override, said in (("optim.batch=64", "only 30 images"), ("data.split=val", "val")):
        with pytest.raises(DataError, match=said):
            forecast(load("photos_r18_cpu", [f"data.root={root}", override]), tmp_path)
    with pytest.raises(BackbenchError, match="fewer than one batch of 9999999"):
        forecast(load("imagenet_r50_100ep", ["optim.batch=9999999"]), tmp_path)


def test_no_recipe_is_the_demo():
    assert load(None, []) == load("demo", [])


def test_a_folder_of_the_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "demo").mkdir()  # e.g. from `--out demo`
    monkeypatch.chdir(tmp_path)
    assert load("demo", []) == load(None, [])


def test_a_configuration_cannot_be_changed():
    config = load("demo", [])
    with pytest.raises(ValueError, match="frozen"):
        config.optim.batch = 8
    assert len(EpochSampler(128, config.optim.batch, 0, 0, 2)) == 2


@pytest.mark.parametrize("given, folder", [(None, "demo"), ("stl10_r18", "stl10_r18"), ("mine/fast.yaml", "fast")])
def test_a_run_has_its_recipes_name(given, folder):
    assert recipes.run_name(given) == Path(folder)
