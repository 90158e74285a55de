"""Checkpoints of a command: their names, repeats that are measured once, and refusals before anything is read."""

from __future__ import annotations

import functools

import pytest
from backbones import initial

from backbench.errors import BackbenchError, ConfigError
from benchmarks import report, run_all, run_one, starting, subjects
from benchmarks.launchers import local
from benchmarks.records import store
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import save


@functools.cache
def _state(seed, width=0.25):
    return initial(Architecture(name="resnet18", width=width), seed)


def checkpoint(path, seed=0, width=0.25):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, _state(seed, width), Architecture(name="resnet18", width=width), InputSpec(size=32))
    return str(path)


def names(*ckpts, baselines=""):
    return [subject.name for subject in run_all.find_subjects(list(ckpts), baselines, 1)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["moco/resnet18.pth", "swav/resnet18.pth"], ["moco/resnet18", "swav/resnet18"]),
        (
            ["version_0/checkpoints/last.ckpt", "version_1/checkpoints/last.ckpt"],
            ["version_0/checkpoints/last", "version_1/checkpoints/last"],
        ),
        (["a/x/net.pth", "b/x/net.pth", "b/y/net.pth"], ["a/x/net", "b/x/net", "b/y/net"]),
        (["run/last.pth", "run/best.pth"], ["run/last", "run/best"]),
        (["a/Net.pth", "b/net.pth"], ["a/Net", "b/net"]),
        (["a/step=5.pth", "b/step=5.pth"], ["a/step=5", "b/step=5"]),
        (["a/one.pth", "b/two.pth"], ["one", "two"]),
    ],
    ids=lambda value: value[0],
)
def test_files_of_one_name_are_rows_of_their_own(tmp_path, files, expected):
    assert names(*(checkpoint(tmp_path / file, seed) for seed, file in enumerate(files))) == expected


def test_only_a_given_name_joins(tmp_path):
    a, b, c = (checkpoint(tmp_path / d / "net.pth", i) for i, d in enumerate("abc"))
    assert names(f"ours={a}", f"ours={b}", c) == ["ours", "ours", "net"]
    assert names(f"net={a}", f"net={b}", c) == ["net", "net", "c/net"]


def test_a_name_is_the_same_in_another_form_of_its_accents_and_spaces(tmp_path):
    a, b = (checkpoint(tmp_path / d / "net.pth", i) for i, d in enumerate("ab"))
    assert names(f"caf\u00e9  x={a}", f" cafe\u0301 x={b}") == ["caf\u00e9 x"] * 2


def test_what_is_given_twice_is_measured_once_and_said(tmp_path, capsys, monkeypatch):
    a = checkpoint(tmp_path / "a" / "net.pth")
    copy = checkpoint(tmp_path / "b" / "net.pth")
    (tmp_path / "net.pth").symlink_to(a)
    monkeypatch.chdir(tmp_path)
    assert names(a, "a/net.pth", str(tmp_path / "net.pth"), copy) == ["net"]
    assert capsys.readouterr().err.count("measured once") == 3
    assert names(f"x={a}", f"x={copy}") == ["x"]
    assert "measured once" in capsys.readouterr().err


def test_the_same_weights_under_two_names_are_said_to_be(tmp_path, capsys):
    a, b = checkpoint(tmp_path / "a.pth"), checkpoint(tmp_path / "b.pth")
    assert names(a, f"x={b}") == ["a", "x"]
    assert "x: the same weights as a" in capsys.readouterr().err


def test_baselines_of_networks_of_one_file_name_are_told_apart(tmp_path):
    a, b = checkpoint(tmp_path / "a" / "net.pth"), checkpoint(tmp_path / "b" / "net.pth", width=0.5)
    assert names(a, b, baselines="random") == [
        "a/net", "b/net", "random:resnet18 like a/net", "random:resnet18 like b/net",
    ]  # fmt: skip
    assert names(a, baselines="random,random,random:resnet18")[1:] != names(a, baselines="random")[2:]


def test_a_row_is_not_both_trained_and_random(tmp_path):
    with pytest.raises(ConfigError, match="a random network has the same name"):
        names("x=random:resnet18", f"x={checkpoint(tmp_path / 'a.pth')}")


@pytest.mark.parametrize(
    ("ckpt", "words"),
    [
        ("", "not a checkpoint; expected FILE or NAME=FILE"),
        ("x=", "not a checkpoint; expected FILE or NAME=FILE"),
        ("={file}", "no name before the '='"),
        ("  ={file}", "no name before the '='"),
        ("a\x1b[31mb={file}", "characters that cannot be shown"),
        ("a\u202eb={file}", "characters that cannot be shown"),
        ("a\0b={file}", "not a checkpoint"),
        ("random:resnet18={file}", "'random:' begins a source, not a name"),
        ("RANDOM:x={file}", "begins a source, not a name"),
        ("zoo:x={file}", "begins a source, not a name"),
        (f"{'x' * 101}={{file}}", "101 characters, at most 100 fit a table"),
        (f"{'x' * 5000}.pth", "more than 255 bytes"),
    ],
)
def test_a_name_or_file_that_is_none_is_a_sentence(tmp_path, ckpt, words):
    given = ckpt.format(file=checkpoint(tmp_path / "a.pth"))
    with pytest.raises(BackbenchError) as caught:
        run_all.find_subjects([given], "", 1)
    assert words in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a/b", "../../x", ".", "a|b", "CON", "\u6a21\u578b", "x" * 100, "a=b", "-x", "=x"])
def test_any_other_name_is_a_name(tmp_path, name):
    file = checkpoint(tmp_path / "a.pth")
    (subject,) = run_all.find_subjects([f"{name}={file}"], "", 1)
    shown, source = subjects.split_name(f"{name}={file}")
    assert subject.name == shown and source.endswith(file)


def test_a_file_whose_name_is_no_text_is_measured(tmp_path):
    file = checkpoint(tmp_path / "net\udcff.pth")
    (subject,) = run_all.find_subjects([file], "", 1)
    assert subject.name == "net\\udcff"


def test_a_file_that_is_called_as_a_random_network_is_not_taken_for_one(tmp_path):
    with pytest.raises(ConfigError, match="give it a name"):
        names(checkpoint(tmp_path / "random:resnet18.pth"))


@pytest.fixture
def handled(monkeypatch, tmp_path, image_folder):
    """`run_all` with its cells in this process, on a few images."""
    monkeypatch.setattr(local, "run", lambda commands, **_: [run_one.main(command[2:]) for command in commands])

    def run(*ckpts, more=()):
        argv = [word for ckpt in ckpts for word in ("--ckpt", ckpt)]
        argv += ["--out", str(tmp_path / "out"), "--data", f"imagenet={image_folder}", "--tasks", "imagenet_knn"]
        fields = ["data.expect=any", "k=[1,3]", "headline_k=3"]
        return run_all.main([*argv, *more, *(f"imagenet_knn.{field}" for field in fields)])

    return run


@pytest.mark.slow
def test_methods_of_one_file_name_are_not_averaged(tmp_path, handled, capsys):
    """Checkpoints join in one call or over two calls into one folder, but only if the user gives them one name."""
    moco, swav = checkpoint(tmp_path / "moco/resnet18.pth"), checkpoint(tmp_path / "swav/resnet18.pth", 1)
    assert handled(moco, swav) == 0
    out = tmp_path / "out"
    assert "| moco/resnet18 (" in (out / "report.md").read_text() and "±" not in (out / "report.md").read_text()
    assert handled(swav) == 0
    assert "| resnet18 (" in (out / "report.md").read_text()
    report.write(out)
    assert "| swav/resnet18 (" in (out / "report.md").read_text() and "±" not in (out / "report.md").read_text()
    capsys.readouterr()
    assert handled(f"resnet18={moco}", f"resnet18={swav}") == 0
    assert "(2 backbones)" in (out / "report.md").read_text()
    assert capsys.readouterr().err.count("an identical result exists") == 2, (
        "what is measured is named, not measured anew"
    )
    assert {r.backbone.named for r in store.read_all(out)} == {True}


@pytest.mark.slow
@pytest.mark.parametrize("text", ['{"step": 1, "loss": 2.0}\n', "{", '{"epoch": "one", "loss": 1}\n', "\xff"])
def test_a_foreign_log_beside_a_checkpoint_does_not_break_the_report(tmp_path, handled, capsys, text):
    file = checkpoint(tmp_path / "run" / "net.pth")
    (tmp_path / "run" / "metrics.jsonl").write_text(text, encoding="latin-1")
    assert handled(file) == 0
    assert "metrics.jsonl: no curves" in capsys.readouterr().err
    assert "<h2>Pretraining" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_report_that_fails_says_where_the_numbers_are(tmp_path, handled, capsys, monkeypatch):
    def fails(*_args, **_options):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(report, "render_all", fails)
    with pytest.raises(RuntimeError, match="no fonts"):
        handled(checkpoint(tmp_path / "net.pth"))
    assert f"the measured numbers are in {tmp_path / 'out'}" in capsys.readouterr().err
    assert [r.status for r in store.read_all(tmp_path / "out")] == ["ok"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", ""], "no cell; known: "),
        (["--tasks", " , "], "no cell; known: "),
        (["--tasks", "imagenet_knn,x"], "unknown cell 'x'"),
        (["--data", "imagenet=/elsewhere"], "--data imagenet: given twice"),
        (["--out", "{tmp}/net.pth"], "is a file; give a folder"),
        (["--out", "{tmp}/images/train"], "lies in the data of 'imagenet'"),
        (["--out", "{tmp}/net.pth/results"], "cannot write"),
        (["--seeds", "1000000"], "at most 1000"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_is_measured(tmp_path, handled, monkeypatch, more, words):
    monkeypatch.setattr(starting, "launch", lambda *_: pytest.fail("something ran"))
    file = checkpoint(tmp_path / "net.pth")
    with pytest.raises(BackbenchError) as caught:
        handled(file, more=[word.format(tmp=tmp_path) for word in more])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_cell_named_twice_runs_once(tmp_path, handled, capsys):
    assert handled(checkpoint(tmp_path / "net.pth"), more=["--tasks", "imagenet_knn, imagenet_knn,", "--dry-run"]) == 0
    assert capsys.readouterr().err.count("imagenet_knn") == 1


@pytest.mark.slow
def test_a_newer_programs_record_stops_the_command_before_it_measures(tmp_path, handled, monkeypatch):
    file = checkpoint(tmp_path / "net.pth")
    assert handled(file) == 0
    (path,) = (tmp_path / "out").glob("*/*/seed0.json")
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    before = path.read_bytes()
    monkeypatch.setattr(starting, "launch", lambda *_: pytest.fail("something ran"))
    with pytest.raises(
        BackbenchError, match="schema 2 is newer than this program's 1: update backbench, or give another"
    ):
        handled(file)
    with pytest.raises(BackbenchError, match="schema 2 is newer"):
        run_one.main(
            ["--ckpt", file, "--cell", "imagenet_knn", "--out", str(tmp_path / "out"), "--data",
             f"imagenet={tmp_path / 'images'}", "data.expect=any", "k=[1,3]", "headline_k=3"]
        )  # fmt: skip
    assert path.read_bytes() == before
