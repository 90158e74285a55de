"""The doctor: its findings on complete, incomplete, broken and other data sets, and its exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbench.data import catalogue, demo, doctor
from backbench.data.__main__ import main
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError, DataError


@pytest.fixture
def voc(tmp_path):
    """A copy of the demo's VOC that may be damaged, not recognised as the demo."""
    return Path(shutil.copytree(demo.root() / "voc", tmp_path / "copy" / "voc"))


def year(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2007"


def diagnose(capsys, *argv: str) -> tuple[int, dict[str, dict]]:
    code = main(["doctor", "--json", *argv])
    return code, {report["name"]: report for report in json.loads(capsys.readouterr().out)}


def test_every_layout_of_the_demo_is_whole(capsys):
    code, reports = diagnose(capsys, "--data-root", str(demo.root()))
    assert code == 0
    assert list(reports) == list(catalogue.known())
    rendered = [report for name, report in reports.items() if (demo.root() / name).is_dir()]
    assert len(rendered) >= 6 and {r["state"] for r in reports.values() if r not in rendered} == {"absent"}
    for report in rendered:
        assert (report["state"], report["problems"], report["is_published"]) == ("present", [], False)
        assert report["warnings"] == ["rendered demo scenes: numbers will be labelled 'demo scenes'"]
    for split in reports["imagenet"]["splits"]:
        assert split["checked"] == doctor.SAMPLE < split["images"]
        assert split["published"] == catalogue.known()["imagenet"].counts[split["name"]]


def test_another_data_set_is_called_so(voc, capsys):
    code, reports = diagnose(capsys, "--data", f"voc={voc}")
    assert code == 0
    (note,) = reports["voc"]["warnings"]
    assert note.startswith("not the published data set: numbers will be labelled 'voc layout, 100/100 images'")


def test_what_is_not_there_is_named_with_its_source(tmp_path, capsys):
    (tmp_path / "coco").mkdir()
    assert main(["doctor", "--data-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name, known in catalogue.known().items():
        assert f"{name:<12} absent" in said
        assert known.source in said


def test_no_place_and_unknown_names():
    with pytest.raises(ConfigError, match="--data-root"):
        main(["doctor"])
    with pytest.raises(ConfigError, match="expected name=PATH"):
        main(["doctor", "--data", "voc"])
    with pytest.raises(DataError, match="did you mean 'imagenet'"):
        main(["doctor", "--data", "imagnet=x"])


def test_half_a_data_set_is_broken(voc, capsys):
    for file in (year(voc) / "ImageSets/Main").glob("*test.txt"):
        file.unlink()
    code, reports = diagnose(capsys, "--data", f"voc={voc}")
    assert code == 1
    assert reports["voc"]["state"] == "incomplete"
    assert [split["name"] for split in reports["voc"]["splits"]] == ["trainval"]
    assert "test.txt: no such file" in reports["voc"]["problems"][0]
    assert main(["doctor", "--data", f"voc={voc}"]) == 1
    assert catalogue.known()["voc"].source in capsys.readouterr().out


def test_unreadable_images_are_counted_and_named(voc, capsys):
    pictures = year(voc) / "JPEGImages"
    cut = pictures / "000003.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (pictures / "000105.jpg").write_bytes(b"")
    code, reports = diagnose(capsys, "--data", f"voc={voc}")
    assert code == 1
    assert {s["name"]: len(s["unreadable"]) for s in reports["voc"]["splits"]} == {"trainval": 1, "test": 1}
    said = " ".join(reports["voc"]["problems"])
    assert "000003.jpg: not a whole image" in said
    assert "000105.jpg: the file is empty" in said


@pytest.fixture
def folder(tmp_path):
    """An image folder with 300 training images, more than the sample, and 20 validation images."""
    for split, count in (("train", 300), ("val", 20)):
        for i in range(count):
            path = tmp_path / "set" / split / "ab"[i % 2] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), (i % 256, i // 256, len(split))).save(path)
    return tmp_path / "set"


def test_full_looks_at_every_image(folder, capsys):
    train = catalogue.load("imagenet", "train", DataPlaces(None, {"imagenet": folder}))
    looked_at = doctor.sample(train, full=False)
    assert len(looked_at) == len(np.unique(looked_at)) == doctor.SAMPLE
    assert np.array_equal(looked_at, doctor.sample(train, full=False))
    passed_over = int(np.setdiff1d(np.arange(300), looked_at)[0])
    (folder / "train" / train.source.name(passed_over)).write_bytes(b"not an image")
    assert diagnose(capsys, "--data", f"imagenet={folder}")[0] == 0
    code, reports = diagnose(capsys, "--data", f"imagenet={folder}", "--full")
    assert code == 1
    assert [s["checked"] for s in reports["imagenet"]["splits"]] == [300, 20]
    assert train.source.name(passed_over) in reports["imagenet"]["problems"][0]


def test_images_in_both_splits_are_a_warning(folder, capsys):
    shutil.copy(folder / "train/a/008.png", folder / "val/b/001.png")
    shutil.copy(folder / "train/b/011.png", folder / "val/b/003.png")
    code, reports = diagnose(capsys, "--data", f"imagenet={folder}")
    assert code == 0
    assert "images of val of the 20 looked at that are in train too: 2, e.g. " in reports["imagenet"]["warnings"][0]
    assert "val/b/001.png is train/a/008.png" in reports["imagenet"]["warnings"][0]


def test_an_annotation_that_does_not_parse(voc, capsys):
    (year(voc) / "Annotations/000002.xml").write_text("<annotation>")
    (year(voc) / "Annotations/000110.xml").unlink()
    code, reports = diagnose(capsys, "--data", f"voc={voc}")
    assert code == 1
    first, second = reports["voc"]["problems"]
    assert first.startswith("trainval: unreadable annotations: 1, e.g. ") and "000002.xml" in first
    assert second.startswith("test: unreadable annotations: 1, e.g. ") and "000110.xml" in second


def test_lists_that_disagree_with_the_annotations(voc, capsys):
    file = year(voc) / "ImageSets/Main/disc_trainval.txt"
    rows = file.read_text().splitlines()
    turned = next(i for i, row in enumerate(rows) if row.endswith("-1"))
    rows[turned] = rows[turned].replace("-1", " 1")
    file.write_text("\n".join(rows))
    note = (year(voc) / "Annotations/000101.xml").read_text()
    stranger = "<object><name>zebra</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>" + (
        "<xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
    )
    (year(voc) / "Annotations/000101.xml").write_text(note.replace("</annotation>", stranger))
    code, reports = diagnose(capsys, "--data", f"voc={voc}")
    assert code == 0
    said = reports["voc"]["warnings"]
    assert f"trainval: images whose class lists and XML disagree: 1, e.g. {rows[turned].split()[0]}" in said
    assert "test: images whose class lists and XML disagree: 1, e.g. 000101" in said


def test_splits_with_other_classes_are_broken(tmp_path, capsys):
    root = Path(shutil.copytree(demo.root() / "coco", tmp_path / "coco"))
    file = root / "annotations/instances_val2017.json"
    file.write_text(file.read_text().replace('"disc"', '"disk"'))
    code, reports = diagnose(capsys, "--data", f"coco={root}")
    assert code == 1
    assert "train2017 and val2017 have different classes: 2, e.g. disc, disk" in reports["coco"]["problems"]


def test_real_data_are_whole_and_not_the_published_ones(real_data, capsys):
    code, reports = diagnose(capsys, "--data", f"voc={real_data / 'voc'}", "--data", f"coco={real_data / 'coco'}")
    assert code == 0
    for report in reports.values():
        assert (report["state"], report["is_published"]) == ("present", False)
        assert len(report["warnings"]) == 1, "lists and XML agree, no image is in both splits"
    assert "'voc layout, 381/394 images'" in reports["voc"]["warnings"][0]


def test_help_imports_nothing_heavy():
    code = "import sys\nfrom backbench.data.__main__ import parser\nparser()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "sklearn", "torchvision", "matplotlib"} & set(done.stdout.split())
