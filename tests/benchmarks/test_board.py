"""Submitting records, the public board and the model card: round trips, tampered records, hostile entries."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from made_records import make_record

from backbench.errors import BackbenchError
from backbench.yaml_text import parse_yaml
from benchmarks import card, cli, plan, submit
from benchmarks.board import __main__ as board
from benchmarks.board import entry
from benchmarks.records import store

COUNTS = {"train": 1_281_167, "test": 50_000, "classes": 1000}


def whole_record(value=66.0, cell="imagenet_knn", seed=0, name="mine", weights="a", **fields):
    """A record as `backbench run` writes it on the whole published data set."""
    known = plan.load_cell(cell)
    config = known.config.model_dump(mode="json")
    primary = known.task.primary(known.config)
    made = make_record(value, name=name, weights=weights, seed=seed, cell=cell, metric=primary, **fields)
    task = made.task.model_copy(
        update={
            "name": known.task_name,
            "version": known.task.version,
            "config": config,
            "config_sha256": known.config_sha256,
        }
    )
    data = made.data.model_copy(update={"counts": COUNTS, "manifest_sha256": "c" * 64})
    return made.model_copy(update={"task": task, "data": data})


@pytest.fixture
def results(tmp_path):
    """A folder with three seeds of a linear probe and a kNN, and the file of the kNN."""
    out = tmp_path / "results"
    for seed, value in enumerate((70.0, 70.4, 70.8)):
        store.write(out, whole_record(value, "imagenet_linear", seed))
    return out, store.write(out, whole_record())


def submitted(results, tmp_path, *words):
    out = tmp_path / "entries" / "mine.json"
    assert submit.main([str(results), "--by", "A lab", "--out", str(out), *words]) == 0
    return out


def site(entries, tmp_path):
    code = board.main([str(entries), "--out", str(tmp_path / "site"), "--title", "A board"])
    return code, (tmp_path / "site" / "index.html").read_text(), (tmp_path / "site" / "board.csv").read_text()


# ---------------------------------------------------------------- round trip


def test_a_record_goes_to_the_board_and_back(results, tmp_path, capsys):
    file = submitted(
        results[0], tmp_path, "--link", "https://example.org/paper?v=1", "--note", "trained for 100 epochs"
    )
    made = entry.read(file)
    assert (made.name, made.by, len(made.records)) == ("mine", "A lab", 4)
    originals = store.read_paths([results[0]]).values()
    assert {r.identity() for r in made.records} == {r.identity() for r in originals}
    code, page, text = site(file.parent, tmp_path)
    assert code == 0 and "board of 1 entries" in capsys.readouterr().out
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["kind"] == "submitted"]
    found = {(row["cell"], row["metric"]): row for row in rows}
    assert set(found) == {("imagenet_knn", "top1_k20"), ("imagenet_linear", "top1")}
    linear = found["imagenet_linear", "top1"]
    assert (float(linear["mean"]), linear["n"], linear["over"], linear["by"]) == (
        pytest.approx(70.4),
        "3",
        "seeds",
        "A lab",
    )
    assert "70.4 ± 0.4 (3 seeds)" in page and 'href="https://example.org/paper?v=1"' in page
    assert "trained for 100 epochs" in page and f"weights {'a' * 8}" in page and "preset" in linear["setting"]


def test_the_first_rows_are_the_published_numbers(tmp_path):
    (tmp_path / "empty").mkdir()
    code, page, text = site(tmp_path / "empty", tmp_path)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert code == 0 and {row["kind"] for row in rows} == {"published"} and len(rows) > 100
    knn = [row for row in rows if (row["cell"], row["metric"]) == ("imagenet_knn", "top1_k20")]
    assert [float(row["mean"]) for row in knn] == sorted((float(row["mean"]) for row in knn), reverse=True)
    assert {"MSBReg Table 4"} <= {row["by"] for row in knn}
    assert page.count('<span class="flag">published</span>') == len(rows) and "submitted</span>" not in page
    align = [float(r["mean"]) for r in rows if r["metric"] == "uniformity"]
    assert align == sorted(align), "lower is better"


def test_nothing_private_is_in_an_entry(results, tmp_path):
    out, file = results
    values = json.loads(file.read_text())
    values["backbone"]["source"] = "/home/somebody/secret/model.pth"
    values["provenance"]["argv"] = ["run_one.py", "--ckpt", "/home/somebody/secret/model.pth"]
    file.write_text(json.dumps(values))
    assert "secret" not in submitted(out, tmp_path).read_text()


# ---------------------------------------------------------------- refusals


def change(path, value):
    """Return a change of a record's JSON: `task.version` -> value."""

    def apply(values):
        *parents, last = path.split(".")
        for key in parents:
            values = values[key]
        values[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("task.version", 99, "measured by version 99 of knn, and this program has version 1: measure it again"),
        ("task.config.k", [5], "its configuration is not the one that its hash was made of"),
        ("task.config_sha256", "d" * 64, "its configuration is not the one that its hash was made of"),
        ("task.config.nonsense", 1, "its configuration: unknown key 'nonsense'"),
        ("task.name", "linear_probe", "imagenet_knn is measured by task knn"),
        ("cell", "imagenet_nothing", "unknown cell 'imagenet_nothing'"),
        ("backbone.weights_sha256", "mine", "its hash of the weights is not a SHA-256"),
        ("data.manifest_sha256", "c" * 63, "its data manifest is not a SHA-256"),
        ("data.counts.test", 5, "it says 5 test where imagenet has 50000"),
        ("data.counts.classes", 10, "it says 10 classes where imagenet has 1000"),
        ("data.name", "stl10", "its data are not those of imagenet_knn"),
        ("provenance", None, "it does not say on which machine it was measured"),
        ("primary", "top1_k7", "no 'top1_k7', its headline"),
        ("metrics.top1_k20.value", 166.0, "top1_k20 is 166%, which no measurement can give"),
    ],
)
def test_a_tampered_record_is_refused_in_one_sentence(results, tmp_path, path, value, words):
    _, file = results
    values = json.loads(file.read_text())
    change(path, value)(values)
    file.write_text(json.dumps(values))
    with pytest.raises(BackbenchError) as refused:
        submit.main([str(file), "--by", "A lab", "--out", str(tmp_path / "entry.json")])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value) and not (tmp_path / "entry.json").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [("data.is_published", False), ("data.is_demo", True), ("profile", "smoke")],
)
def test_what_nobody_can_compare_is_left_out(results, tmp_path, path, value, capsys):
    out, file = results
    values = json.loads(file.read_text())
    change(path, value)(values)
    file.write_text(json.dumps(values))
    made = entry.read(submitted(out, tmp_path))
    assert {record.cell for record in made.records} == {"imagenet_linear"}
    assert "left out" in capsys.readouterr().err
    with pytest.raises(BackbenchError, match="no record of 'mine' can be submitted"):
        submit.main([str(file), "--by", "A lab"])


def test_scores_that_are_not_those_of_the_number_are_refused(tmp_path):
    labels = np.zeros(100, np.int32)
    best = (np.arange(100) >= 66).astype(np.int32)[:, None]
    honest = store.write(tmp_path / "a", whole_record(66.0), {"best": best, "labels": labels})
    assert submit.main([str(honest), "--by", "A lab", "--out", str(tmp_path / "entry.json")]) == 0
    edited = json.loads(honest.read_text())
    edited["metrics"]["top1_k20"]["value"] = 67.0
    honest.write_text(json.dumps(edited))
    with pytest.raises(BackbenchError, match="not submitted: the stored scores are not those of the number"):
        submit.main([str(honest), "--by", "A lab", "--out", str(tmp_path / "entry2.json")])


def test_the_weights_are_compared_when_they_are_given(results, tmp_path, monkeypatch):
    from model_zoo import load

    loaded = load.load("random:resnet18")
    monkeypatch.setattr(load, "load", lambda file: loaded)
    with pytest.raises(BackbenchError, match=f"hash {loaded.weights_sha256[:8]}, the records are of aaaaaaaa"):
        submitted(results[0], tmp_path, "--weights", "model.pth")


def test_one_backbone_is_chosen_by_name(results, tmp_path):
    out, _ = results
    store.write(out, whole_record(50.0, name="other", weights="b"))
    with pytest.raises(BackbenchError, match="records are of 2 backbones: choose one with --name; known: mine, other"):
        submitted(out, tmp_path)
    with pytest.raises(BackbenchError, match="no records of 'othr'; did you mean 'other'"):
        submitted(out, tmp_path, "--name", "othr")
    assert entry.read(submitted(out, tmp_path, "--name", "other")).name == "other"


@pytest.mark.parametrize("words", [["--link", "javascript:alert(1)"], ["--link", "https://a b"], ["--note", "x" * 301]])
def test_fields_of_an_entry_are_bounded(results, tmp_path, words):
    with pytest.raises(BackbenchError, match=r"the entry: not an entry: '(link|note)'"):
        submitted(results[0], tmp_path, *words)


# ---------------------------------------------------------------- hostile entries


def edited(file, apply, *, sealed):
    values = json.loads(file.read_text())
    apply(values)
    if sealed:
        made = entry.Entry.model_validate_json(json.dumps(values)).sealed()
        values["sha256"] = made.sha256
    file.write_text(json.dumps(values))


def test_an_entry_that_was_changed_is_left_out(results, tmp_path, capsys):
    file = submitted(results[0], tmp_path)
    edited(file, lambda values: values["records"][0]["metrics"]["top1_k20"].update(value=99.0), sealed=False)
    code, page, text = site(file.parent, tmp_path)
    assert code == 1 and ",submitted," not in text and "Entries that were left out" in page
    assert "mine.json: it was changed or cut after it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda v: v["records"][0]["task"].update(version=99), "measured by version 99"),
        (lambda v: v["records"][0]["data"].update(is_published=False), "not measured on the published data set"),
        (lambda v: v["records"][0]["backbone"].update(name="other"), "a record is of 'other', not of 'mine'"),
        (lambda v: v["records"].append(v["records"][0]), "is given twice"),
        (lambda v: v["records"][0]["data"].update(manifest_sha256="d" * 64), "two data manifests for imagenet"),
    ],
)
def test_an_entry_with_a_new_hash_is_checked_like_a_record(results, tmp_path, apply, words):
    """Its hash shows damage only: a stranger can write a new one."""
    file = submitted(results[0], tmp_path)
    edited(file, apply, sealed=True)
    with pytest.raises(BackbenchError, match=re.escape(words)):
        entry.read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable result file"),
        (b"[]", "not an entry"),
        (b'{"board": 2}', "not an entry: 'board'"),
        (b'{"board": 1, "name": 5}', "not an entry: 'name'"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"board": 1' + b"0" * 5000 + b"}", "not a readable result file"),
        (b'{"name": "\\ud800"}', "not a readable result file"),
        (b" " * (entry.LARGEST + 1), "cannot be read"),
    ],
)
def test_what_is_no_entry_is_refused(tmp_path, content, words):
    file = tmp_path / "entry.json"
    file.write_bytes(content)
    with pytest.raises(BackbenchError, match=re.escape(words)):
        entry.read(file)


class Page(HTMLParser):
    """The tags and addresses of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.handlers = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for key, value in attrs if key in ("href", "src", "action", "data", "srcset")]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]


HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</td></tr></table><iframe src=//x>", '=HYPERLINK("x")',
    "+1+1", "@SUM(A1)", "{{ 7 * 7 }}", "{% raw %}", "a\u202eb\x1b[31m", "[x](javascript:alert(1))", "| a | b |", "---\nx: 1",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_entry_is_harmless(results, tmp_path, text):
    """In every text that a stranger controls: name, submitter, note, and the record's own words."""
    file = submitted(results[0], tmp_path)

    def apply(values):
        values["name"], values["by"], values["note"] = text, text, text
        for record in values["records"]:
            record["backbone"]["name"] = text
            record["backbone"]["format"] = record["task"]["engine"] = record["suite"] = text
            record["provenance"]["commit"] = record["provenance"]["device"] = text
            record["task"]["notes"] = [text]
            record["backbone"]["arch"] = {"name": text}

    edited(file, apply, sealed=True)
    code, page, sheet = site(file.parent, tmp_path)
    found = Page()
    found.feed(page)
    assert code == 0 and not {"script", "img", "iframe", "object", "embed", "form"} & found.tags and not found.handlers
    assert {a for a in found.addresses if not a.startswith("#")} == {"board.csv"}
    assert "\x1b" not in page and "\u202e" not in page and "default-src 'none'" in page
    rows = list(csv.reader(io.StringIO(sheet)))
    assert len({len(row) for row in rows}) == 1
    assert not any(cell.lstrip().startswith(("=", "+", "@")) for row in rows for cell in row)
    shown = card.main([str(_as_records(file, tmp_path)), "--out", str(tmp_path / "README.md")])
    text_of_card = (tmp_path / "README.md").read_text()
    front = parse_yaml(text_of_card.split("\n---\n")[0].removeprefix("---\n"))
    assert shown == 0 and set(front) == {"tags", "pipeline_tag", "model-index"}
    assert not re.search(r"<(script|img|iframe)|(?<!\\)\]\(", text_of_card.split("\n---\n", 1)[1])


def _as_records(file, tmp_path):
    for i, record in enumerate(json.loads(file.read_text())["records"]):
        place = tmp_path / "records" / f"seed{i}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(record))
    return tmp_path / "records"


def test_two_entries_never_share_a_name_or_a_number(results, tmp_path, capsys):
    file = submitted(results[0], tmp_path)
    shutil.copy(file, file.with_name("again.json"))
    thief = file.with_name("thief.json")
    shutil.copy(file, thief)
    edited(thief, lambda values: values.update(by="Somebody else"), sealed=True)
    code, _, text = site(file.parent, tmp_path)
    said = capsys.readouterr().err
    assert code == 1 and text.count(",submitted,") == 2
    assert "mine.json: again.json has the same submitter and name" in said and "thief.json: again.json has" in said


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(BackbenchError, match="no such folder of entries"):
        board.main([str(tmp_path / "nowhere")])


# ---------------------------------------------------------------- the card


def test_a_hub_reads_the_card(results, tmp_path):
    repocard = pytest.importorskip("huggingface_hub.repocard_data")
    out = tmp_path / "README.md"
    words = ["--licence", "mit", "--link", "https://example.org/paper", "--out", str(out)]
    assert card.main([str(results[0]), *words]) == 0
    front = parse_yaml(out.read_text().split("\n---\n")[0].removeprefix("---\n"))
    name, found = repocard.model_index_to_eval_results(front["model-index"])
    assert name == "mine" and front["license"] == "mit"
    by_cell = {result.task_name: result for result in found}
    linear = by_cell["imagenet_linear top1"]
    assert (linear.metric_type, linear.metric_value) == ("accuracy", pytest.approx(70.4))
    assert (linear.dataset_type, linear.dataset_name, linear.dataset_split) == ("imagenet", "ImageNet", "val")
    assert by_cell["imagenet_knn top1_k20"].metric_value == 66.0
    text = out.read_text()
    assert "70.4 ± 0.4 (3 seeds)" in text and "MSBReg Table 4" in text and f"`{'a' * 64}`" in text


def test_a_card_never_replaces_a_file_unasked(results, tmp_path):
    out = tmp_path / "README.md"
    out.write_text("mine")
    with pytest.raises(BackbenchError, match="--force to replace it"):
        card.main([str(results[0]), "--out", str(out)])
    assert out.read_text() == "mine"
    assert card.main([str(results[0]), "--out", str(out), "--force"]) == 0


@pytest.mark.parametrize("fields", [{"demo": True}, {"profile": "smoke"}])
def test_rehearsals_and_demos_are_on_no_card(tmp_path, fields):
    file = store.write(tmp_path, make_record(50.0, published=False, **fields))
    with pytest.raises(BackbenchError, match="no number of 'mine' belongs on a card"):
        card.main([str(file), "--out", str(tmp_path / "README.md")])


def test_own_data_are_called_so(tmp_path):
    file = store.write(tmp_path, make_record(50.0, published=False))
    assert card.main([str(file), "--out", str(tmp_path / "README.md")]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "(not the published data set)" in text and "ImageNet layout, 3000/1000 images" in text


@pytest.mark.parametrize("command", ["submit", "board", "card"])
def test_the_commands_are_backbenchs(command, capsys):
    with pytest.raises(SystemExit):
        cli.dispatch([command, "--help"])
    assert f"usage: backbench {command}" in capsys.readouterr().out
