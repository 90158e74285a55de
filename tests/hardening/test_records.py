"""Names, records and other files from strangers, crashes and other programs: no number is lost or invented."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_records import make_record
from markdown_it import MarkdownIt
from PIL import Image

from backbench.errors import BackbenchError
from benchmarks import compare, report
from benchmarks.records import store
from benchmarks.report import escape
from benchmarks.report.table import gather

NAMES = {
    "escape codes": "red\x1b[31m\x1b]0;title\x07net",
    "clear screen": "\x1b[2J\x1b[Hnet",
    "carriage return": "evil\rnet 99.9",
    "backspace": "99.9\b\b\b\b1.0",
    "zero byte": "a\0b",
    "c1 control": "a\x9b31mb",
    "new lines": "a\n\n# heading\n| 1 | 2 |\n",
    "line separators": "a\u2028b\u2029c\x85d",
    "tab first": "\t=1+1",
    "script": "<script>alert(1)</script>",
    "image with handler": "<img src=x onerror=alert(1)>",
    "end of svg": "</text></svg><script>1</script>",
    "comment": "--><!--",
    "entities": "&lt;b&gt;&#60;i&#62;",
    "template": "{{ 7*7 }}{% raw %}",
    "columns": "a|b\\|c||",
    "backslash": "a\\",
    "code": "`a``b",
    "link": "[click](http://example.com)",
    "javascript link": "[x](javascript:alert(1))",
    "reference": "[x][y] [y]: http://example.com",
    "picture": "![x](http://example.com/x.png)",
    "address": "http://example.com/net",
    "www": "www.example.com",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~",
    "list": "- item",
    "numbered": "1. item",
    "heading": "# heading",
    "quotation": "> quote",
    "rule": "---",
    "formula": "=HYPERLINK(\"http://x\")",
    "command": "=cmd|' /C calc'!A0",
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3",
    "at": "@SUM(1)",
    "space and formula": " =1+1",
    "quotes": "a\"b'c,d;e",
    "mathematics": r"$\frac{a}{$b$ \input{/etc/passwd}",
    "latex": r"\write18{ls} % & # _ ^ ~",
    "right to left": "net\u202e0.99\u202c",
    "isolates": "\u2066a\u2069\u200f",
    "zero width": "a\u200b\u200d\ufeffb",
    "combining": "a" + "\u0301" * 50,
    "cjk": "\u6a21\u578b",
    "emoji": "net \U0001f600",
    "private use": "a\ue000b",
    "long": "x" * 5000,
    "spaces": "   ",
    "dots": "../../etc/passwd",
    "looks random": "random-ish:resnet50",
}  # fmt: skip


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def shows_only_text(text: str) -> None:
    hidden = {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} and c != "\n"}
    assert not hidden, [f"{ord(c):x}" for c in hidden]


def cells_of(markdown: str) -> list[list[str]]:
    """Return the visible text of the Markdown's table rows, which must contain only our markup."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    page = _Page()
    page.feed(html)
    allowed = {"p", "strong", "em", "u", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "h2"}
    assert set(page.tags) <= allowed, set(page.tags) - allowed
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    assert len({len(row) for row in cells[:3]}) == 1
    return cells


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_shown_as_text_in_every_file_and_touches_no_other(tmp_path, capsys, name):
    out = tmp_path / "out"
    records = [make_record(50.0, name=name), make_record(40.0, name="other", weights="b")]
    lacking = records[0].model_copy(
        update={"status": "failed", "reason": name, "metrics": {}, "primary": None, "cell": "voc07_svm", "data": None}
    )
    for record in (*records, lacking):
        store.write(out, record)
    assert {r.backbone.name for r in store.read_all(out)} == {name, "other"}
    report.write(out, suite=name)
    print(report.text(out))
    to = next(row.name for row in gather(records).rows if row.name != "other")
    compare.main([str(out), "--csv", str(tmp_path / "c.csv"), "--html", str(tmp_path / "c.html"), f"--to={to}"])
    printed = capsys.readouterr()
    texts = {p.name: p.read_text() for p in (out / "report.md", out / "report.html", out / "report.csv",
             tmp_path / "c.csv", tmp_path / "c.html")}  # fmt: skip
    for text in (*texts.values(), printed.out, printed.err):
        shows_only_text(text)
    for file in ("report.html", "c.html"):
        page = _Page()
        page.feed(texts[file])
        assert not {"img", "iframe", "i"} & set(page.tags) and page.tags.count("script") == 3, file
        assert not [a for a in page.attributes if a.startswith("on")], file
    for file in ("report.csv", "c.csv"):
        for row in csv.DictReader(io.StringIO(texts[file])):
            assert not row["backbone"].lstrip().startswith(("=", "+", "-", "@")) and None not in row
    first = [cells[0] for cells in cells_of(texts["report.md"])]
    assert any(cell.startswith("other") for cell in first)
    assert [p for p in tmp_path.iterdir() if p.name not in ("out", "c.csv", "c.html")] == []


def written(tmp_path: Path, **fields: object) -> Path:
    return store.write(tmp_path, make_record(50.0, **fields), {"labels": np.zeros(3, np.int32)})


def changed(path: Path, change: object) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _set(*keys: str, to: object) -> object:
    def change(values: dict) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return lambda path: changed(path, change)


def _replaced(make: object) -> object:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


NO_RECORD = {  # moved aside, never lost
    "empty": lambda p: p.write_text(""),
    "cut short": lambda p: p.write_text(p.read_text()[:500]),
    "zeros": lambda p: p.write_bytes(bytes(4096)),
    "null": lambda p: p.write_text("null"),
    "list": lambda p: p.write_text("[1, 2]"),
    "list of records": lambda p: p.write_text(f"[{p.read_text()}]"),
    "number": lambda p: p.write_text("3"),
    "string": lambda p: p.write_text('"ok"'),
    "deep list": lambda p: p.write_text("[" * 100_000 + "]" * 100_000),
    "deep mapping": lambda p: p.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "deep field": _set("task", "tuned", to=json.loads("[" * 200 + "]" * 200)),
    "5,000 digits": lambda p: p.write_text('{"schema": ' + "9" * 5000 + "}"),
    "huge seed": _set("seed", to=10**40),
    "huge memory": _set("provenance", "peak_memory", to=10**400),
    "not utf-8": lambda p: p.write_bytes(p.read_bytes() + b"\xff\xfe"),
    "utf-16": lambda p: p.write_bytes(p.read_text().encode("utf-16")),
    "half a character": _set("backbone", "name", to="a\ud800"),
    "items in its place": lambda p: p.write_bytes(store.items_path(p).read_bytes()),
    "a web page": lambda p: p.write_text("<html>"),
    "two records": lambda p: p.write_text(p.read_text() * 2),
    "schema is a word": _set("schema", to="1"),
    "schema is true": _set("schema", to=True),
    "schema is a fraction": _set("schema", to=1.0),
    "schema is 0": _set("schema", to=0),
    "no schema": lambda p: p.write_text("{}"),
    "a field is lacking": lambda p: changed(p, lambda v: v.pop("backbone")),
    "value is NaN": _set("metrics", "top1", "value", to=float("nan")),
    "value is infinite": _set("metrics", "top1", "value", to=float("inf")),
    "value is a word": _set("metrics", "top1", "value", to="50.0"),
    "value is true": _set("metrics", "top1", "value", to=True),
    "value is null": _set("metrics", "top1", "value", to=None),
    "wall time is NaN": _set("provenance", "wall_s", to=float("nan")),
    "status is unknown": _set("status", to="fine"),
}  # fmt: skip


@pytest.mark.parametrize("damage", NO_RECORD.values(), ids=NO_RECORD)
def test_what_is_no_record_is_named_moved_aside_and_measured_again(tmp_path, capsys, damage):
    path = written(tmp_path)
    damage(path)
    before = path.read_bytes()
    record = make_record(51.0)
    assert store.stored(store.record_path(tmp_path, record), record) is None
    report.write(tmp_path)
    for text in (report.text(tmp_path), (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "seed0.json" in text and "50.0" not in text
    with pytest.raises(BackbenchError):
        compare.main([str(path)])
    with pytest.raises(BackbenchError, match="no result file has a number"):
        compare.main([str(tmp_path)])
    store.refuse_newer(tmp_path, record)
    assert store.write(tmp_path, record) == path and store.read(path) == record
    assert path.with_name("seed0.json.unreadable").read_bytes() == before
    assert "moved to seed0.json.unreadable" in capsys.readouterr().err
    assert [r.metrics["top1"].value for r in store.read_all(tmp_path)] == [51.0]


STAYS = {  # we must not replace these
    "newer schema": _set("schema", to=2),
    "much newer schema": _set("schema", to=2**40),
    "newer and unlike ours": lambda p: p.write_text('{"schema": 3, "what": []}'),
    "a field more": _set("new", to=1),
    "a field more of a part": _set("backbone", "new", to=1),
    "folder": _replaced(lambda p: p.mkdir()),
    "full folder": _replaced(lambda p: (p / "x").mkdir(parents=True)),
    "pipe": _replaced(os.mkfifo),
    "dangling link": _replaced(lambda p: p.symlink_to("nowhere")),
    "link to itself": _replaced(lambda p: p.symlink_to(p.name)),
    "device": _replaced(lambda p: p.symlink_to("/dev/zero")),
    "endless": _replaced(lambda p: p.symlink_to("/dev/urandom")),
    "1 GB": _replaced(lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 2**30)),
}


@pytest.mark.parametrize("damage", STAYS.values(), ids=STAYS)
def test_what_must_not_be_replaced_is_refused_before_anything_is_measured(tmp_path, damage):
    path = written(tmp_path)
    damage(path)
    before = path.lstat()
    record = make_record(51.0)
    with pytest.raises(BackbenchError, match=r"seed0\.json"):
        store.refuse_newer(tmp_path, record)
    with pytest.raises(BackbenchError, match=r"seed0\.json"):
        store.write(tmp_path, record)
    report.write(tmp_path)
    assert "seed0.json" in report.text(tmp_path)
    after = path.lstat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_record_that_may_not_be_read_is_not_replaced(tmp_path):
    path = written(tmp_path)
    path.chmod(0)
    with pytest.raises(BackbenchError, match=r"seed0\.json"):
        store.refuse_newer(tmp_path, make_record(51.0))


NOT_OK = {
    "no metrics": _set("metrics", to={}),
    "other metrics alone": lambda p: changed(p, lambda v: v["metrics"].update(top5=v["metrics"].pop("top1"))),
    "no headline named": _set("primary", to=None),
    "another headline named": _set("primary", to="box_AP"),
    "above 100%": _set("metrics", "top1", "value", to=100.1),
    "no objects (-100)": _set("metrics", "top1", "value", to=-100.0),
    "no data": _set("data", to=None),
    "no counts": _set("data", "counts", to={}),
    "no test images": _set("data", "counts", "test", to=0),
    "less than no images": _set("data", "counts", "train", to=-3),
    "no provenance": _set("provenance", to=None),
    "uniformity above 0": lambda p: changed(p, lambda v: v.update(primary="uniformity", metrics={
        "uniformity": {"value": 0.5, "unit": "", "higher_is_better": False}})),
}  # fmt: skip


@pytest.mark.parametrize("damage", NOT_OK.values(), ids=NOT_OK)
def test_ok_without_a_sound_headline_is_no_number(tmp_path, damage):
    path = written(tmp_path)
    damage(path)
    record = make_record(51.0)
    assert store.stored(path, record) is None and not store.is_measured(tmp_path, record)
    report.write(tmp_path)
    for text in (report.text(tmp_path), (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "to measure it again" in text and "50.0" not in text
    assert store.write(tmp_path, record) == path
    assert "to measure it again" not in report.text(tmp_path) and "51.0" in report.text(tmp_path)


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


BESIDE = {
    "empty": "",
    "another program's": lines({"step": 1, "loss": 2.0}),
    "no mapping": lines([1, 2], 3, None, "x"),
    "words": lines({"epoch": "one", "loss": "high"}),
    "nulls": lines({"epoch": None, "loss": None}),
    "true": lines({"epoch": True, "loss": True}),
    "NaN": lines({"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": 1.0}),
    "infinite": lines({"epoch": 1, "loss": float("inf")}, {"epoch": float("inf"), "loss": 1.0}),
    "huge": lines({"epoch": 10**400, "loss": 10**400}, {"epoch": 1e308, "loss": -1e308}),
    "some lines without an epoch": lines({"loss": 1.0}, {"epoch": 1, "loss": 1.0}, {"epoch": 2}),
    "lists": lines({"epoch": [1], "loss": {"a": 1}}),
    "one point": lines({"epoch": 1, "loss": 1.0}),
    "backwards": lines({"epoch": 5, "loss": 1.0}, {"epoch": -1, "loss": 1.0}),
    "not utf-8": b"\xff\xfe\x00\n",
    "zeros": bytes(10_000),
    "deep": "[" * 100_000,
    "5,000 digits": '{"epoch": ' + "9" * 5000 + "}\n",
    "one long line": '{"epoch": 1, "loss": "' + "x" * 1_000_000 + '"}',
}


@pytest.mark.parametrize("text", BESIDE.values(), ids=BESIDE)
def test_curves_of_any_kind_do_not_break_the_report(tmp_path, text):
    data = text if isinstance(text, bytes) else text.encode()
    for name in ("metrics.jsonl", "losses.jsonl"):
        (tmp_path / name).write_bytes(data.replace(b"epoch", b"iteration") if name == "losses.jsonl" else data)
    out = tmp_path / "out"
    path = written(out)
    folder = store.run_folder(out, store.read(path))
    folder.mkdir()
    (tmp_path / "losses.jsonl").rename(folder / "losses.jsonl")
    Image.new("RGB", (8, 8)).save(folder / "pictures.png")
    page = report.write(out, curves={"run": tmp_path / "metrics.jsonl"}).read_text()
    assert "50.0" in page and "data:image/jpeg" in page


PLACES = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda p: p.symlink_to("/dev/zero"),
    "dangling": lambda p: p.symlink_to("nowhere"),
    "no picture": lambda p: p.write_text("{}"),
    "cut short": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20)),
    "bomb": lambda p: Image.new("1", (30_000, 30_000)).save(p, "PNG"),
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
def test_what_lies_in_the_place_of_curves_and_pictures_does_not_break_the_report(tmp_path, make):
    path = written(tmp_path)
    folder = store.run_folder(tmp_path, store.read(path))
    folder.mkdir()
    for name in ("pictures.png", "losses.jsonl", "metrics.jsonl"):
        make(folder / name)
    page = report.write(tmp_path, curves={"run": folder / "metrics.jsonl"}).read_text()
    assert "50.0" in page


def _arrays(**arrays: np.ndarray) -> object:
    return lambda path: np.savez(path, **arrays)


LABELS = np.zeros(100, np.int32)
ITEMS = {
    "absent": Path.unlink,
    "empty": lambda p: p.write_bytes(b""),
    "no archive": lambda p: p.write_text("x"),
    "folder": _replaced(Path.mkdir),
    "pipe": _replaced(os.mkfifo),
    "other arrays": _arrays(a=LABELS),
    "fewer rows": _arrays(best=LABELS[:50, None], labels=LABELS[:50]),
    "rows that do not fit": _arrays(best=LABELS[:50, None], labels=LABELS),
    "no columns": _arrays(best=LABELS, labels=LABELS),
    "three axes": _arrays(best=LABELS[:, None, None], labels=LABELS),
    "a single number": _arrays(best=np.int32(1), labels=np.int32(1)),
    "words": _arrays(best=np.full((100, 1), "a"), labels=np.full(100, "a")),
    "NaN": _arrays(best=np.full((100, 1), np.nan), labels=np.full(100, np.nan)),
    "objects": _arrays(best=np.full((100, 1), None), labels=np.full(100, None)),
    "no rows": _arrays(best=LABELS[:0, None], labels=LABELS[:0]),
    "other scores": _arrays(best=LABELS[:, None] + 1, labels=LABELS),
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-40]),
    "a byte flipped": lambda p: p.write_bytes(bytes(b ^ (i == 100) for i, b in enumerate(p.read_bytes()))),
}  # fmt: skip


@pytest.mark.parametrize("damage", ITEMS.values(), ids=ITEMS)
@pytest.mark.parametrize("metric", ["top1", "mAP"])
def test_broken_scores_cost_the_interval_and_nothing_else(tmp_path, damage, metric):
    cell = {"top1": "imagenet_linear", "mAP": "voc07_svm"}[metric]
    paths = []
    for name, weights in (("mine", "a"), ("random:resnet50", "b")):
        record = make_record(100.0, name=name, weights=weights, metric=metric, cell=cell)
        best = {"best": LABELS[:, None]} if metric == "top1" else {"scores": np.ones((100, 1), np.float32)}
        labels = LABELS if metric == "top1" else np.ones((100, 1), np.int8)
        paths.append(store.write(tmp_path, record, {**best, "labels": labels}))
    assert "no interval" not in report.write(tmp_path).read_text().partition("<script")[0]
    damage(store.items_path(paths[0]))
    text = report.write(tmp_path).read_text().partition("<script")[0]
    assert "no interval" in text and "100.0" in text


def test_a_reader_sees_the_words_themselves():
    """The tests above would also pass if nothing were shown."""
    for kind in ("emphasis", "link", "code", "columns", "list", "address"):
        rows = cells_of(f"| head |\n|---|\n| {escape.markdown(NAMES[kind])} |\n")
        assert rows[1] == [NAMES[kind]]
