"""Zoo backbones by name: loading, the command line, baselines of a benchmark. No network access, only a local folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbones import initial

from backbench.errors import BackbenchError, CheckpointError, ConfigError
from backbench.files import hashes
from model_zoo import entries, fetch
from model_zoo.__main__ import main
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.entries import Entry
from model_zoo.fetch import pins
from model_zoo.load import load

ROOT = Path(__file__).resolve().parents[2]
ARCH = Architecture(name="resnet18", width=0.25, stride_in_1x1=False, pool_padding="end")
INPUT = InputSpec(size=32, std=(0.228, 0.224, 0.225))


def make(name="some_r18", **fields):
    fields = {"url": f"http://127.0.0.1:9/{name}.pth", "format": "moco", "licence": "MIT", "source": "here", **fields}
    return Entry(name=name, method="Some", arch=ARCH, input=INPUT, pretrained_on="ImageNet", **fields)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Create a zoo of two entries; one has a local file."""
    state = initial(ARCH, 3)
    folder = tmp_path / "mine"
    folder.mkdir()
    torch.save({"state_dict": {f"module.encoder_q.{k}": t for k, t in state.items()}}, folder / "some_r18.pth")
    monkeypatch.setenv("BACKBENCH_ZOO", str(folder))
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    found = (make(notes=("padding at the end",)), make("other_r18", by_hand="a person must confirm"))
    monkeypatch.setattr(entries, "all_entries", lambda: found)
    return state


def test_a_name_gives_the_backbone_with_what_the_entry_states(zoo):
    backbone = load("zoo:some_r18")
    assert (backbone.name, backbone.source, backbone.format) == ("some_r18", "zoo:some_r18", "moco")
    assert (backbone.arch, backbone.input) == (ARCH, INPUT)
    assert torch.equal(backbone.state["conv1.weight"], zoo["conv1.weight"])
    assert "padding at the end" in backbone.notes
    assert not any("cannot be told" in note for note in backbone.notes)
    assert load("zoo:some_r18", name="mine").name == "mine"


def test_what_a_layout_states_stands_where_the_entry_says_nothing(tmp_path, monkeypatch):
    """SimCLR's layout implies TensorFlow's padding and pixels in [0, 1], with and without an entry."""
    from model_zoo.formats import simclr_tensorflow

    name = Architecture(name="resnet18")
    torch.save(simclr_tensorflow.example(initial(name, 3), name), tmp_path / "some_r18.pth")
    monkeypatch.setenv("BACKBENCH_ZOO", str(tmp_path))
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))

    def loaded(**fields):
        entry = make(format="simclr_tensorflow").model_copy(update=fields)
        monkeypatch.setattr(entries, "all_entries", lambda: (entry,))
        backbone = load("zoo:some_r18")
        return backbone.arch, backbone.input

    alone = load(tmp_path / "some_r18.pth")
    same, pixels = alone.arch, alone.input
    assert same != Architecture(name="resnet18") and pixels != InputSpec()
    assert loaded(arch=name, input=InputSpec()) == (same, pixels)
    assert loaded(arch=name, input=InputSpec(size=64)) == (same, pixels.model_copy(update={"size": 64}))
    stated = Architecture(name="resnet18", pool_padding="symmetric", conv_padding="symmetric")
    assert loaded(arch=stated, input=INPUT) == (stated, pixels.model_copy(update={"size": 32, "std": INPUT.std}))


def test_another_layout_than_the_source_describes_is_said(zoo, monkeypatch):
    monkeypatch.setattr(entries, "all_entries", lambda: (make(format="vissl"),))
    assert any("its layout is 'moco', the source describes 'vissl'" in note for note in load("zoo:some_r18").notes)


def test_a_file_that_is_not_the_entry(zoo, monkeypatch):
    other = make().model_copy(update={"arch": Architecture(name="resnet50")})
    monkeypatch.setattr(entries, "all_entries", lambda: (other,))
    with pytest.raises(CheckpointError, match=r"zoo:some_r18 \(.*some_r18\.pth\): .*tensors missing"):
        load("zoo:some_r18")


def test_unknown_and_unreachable_names(zoo):
    with pytest.raises(BackbenchError, match="did you mean 'some_r18'"):
        load("zoo:some_r81")
    with pytest.raises(BackbenchError, match="a person must confirm"):
        load("zoo:other_r18")


def test_download(zoo, tmp_path, capsys, monkeypatch):
    assert main(["download", "some_r18"]) == 0
    done = capsys.readouterr()
    assert done.out.split() == ["some_r18", str(tmp_path / "mine" / "some_r18.pth")]
    assert main(["download", "some_r18", "other_r18"]) == 1, "one of them failed"
    assert "FAILED other_r18" in capsys.readouterr().err
    monkeypatch.setattr(fetch, "places", lambda entry: [] if entry.by_hand else ["somewhere"])
    assert main(["download", "--all"]) == 0, "files that a program cannot fetch are skipped"
    for wrong in ([], ["some_r18", "--all"]):
        with pytest.raises(BackbenchError, match="names of entries, or --all"):
            main(["download", *wrong])


def test_download_into_a_folder_copies_what_one_has(zoo, tmp_path, capsys):
    own, copy = tmp_path / "mine" / "some_r18.pth", tmp_path / "mirror" / "some_r18.pth"
    for _ in range(2):
        assert main(["download", "some_r18", "--to", str(copy.parent)]) == 0
        assert capsys.readouterr().out.split() == ["some_r18", str(copy)]
        assert copy.read_bytes() == own.read_bytes()
    assert main(["download", "some_r18", "--to", str(own.parent)]) == 0
    assert [path.name for path in own.parent.glob("*.pth")] == ["some_r18.pth"]


def test_download_of_all_with_a_mirror_leaves_out_numbers_only(zoo, tmp_path, capsys, monkeypatch):
    numbers = make("numbers_r18", url=None, no_weights="never published")
    monkeypatch.setattr(entries, "all_entries", lambda: (make(), numbers))
    monkeypatch.setenv("BACKBENCH_ZOO_MIRROR", "http://127.0.0.1:9")
    assert main(["download", "--all"]) == 0
    assert "numbers_r18" not in "".join(capsys.readouterr())


def test_verify_by_name(zoo, capsys):
    assert main(["verify", "zoo:some_r18", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["layout"] == "moco"
    assert "padding at the end" in card["notes"]
    assert card["file"].endswith("mine/some_r18.pth")


def test_show_says_what_is_known(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path))
    main(["show", "moco_v2_200ep"])
    text = capsys.readouterr().out
    entry = entries.get("moco_v2_200ep")
    for fact in (entry.url, entry.licence, entry.source, "md5 begins 59fd9945", "200 epochs", "67.7"):
        assert fact in text
    pins.add(entry.name, "0" * 64, 7, "http://x")
    main(["show", "moco_v2_200ep"])
    assert f"pinned {'0' * 64}" in capsys.readouterr().out
    main(["show", "moco_v2_200ep", "--json"])
    assert json.loads(capsys.readouterr().out)["recipe"] == {"epochs": 200, "batch": 256}
    main(["show", "moco_v2_r50_imagenet"])
    assert "moco_v2_800ep" in capsys.readouterr().out
    main(["show", "pixpro_400ep"])
    assert "Google Drive asks a person" in capsys.readouterr().out


def test_a_baseline_by_name(zoo):
    from benchmarks.run_all import find_subjects

    subjects = find_subjects(["best=zoo:some_r18"], "some_r18, zoo:some_r18,random", 2)
    assert [subject.ckpt for subject in subjects] == [
        "best=zoo:some_r18",
        "zoo:some_r18",
        "random:resnet18",
    ], "what is given twice is measured once"
    assert [subject.name for subject in subjects[:2]] == ["best", "some_r18"]
    assert subjects[2].backbones[0].arch == ARCH, "the random baseline takes the entry's architecture"
    with pytest.raises(ConfigError, match=r"unknown baseline 'some_r81'.*did you mean 'some_r18'"):
        find_subjects([], "some_r81", 1)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["--help"], ["list"], ["show", "swav_800ep"], ["download", "--help"]])
def test_words_need_no_torch(command):
    code = "import sys; from model_zoo.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules, file=sys.stderr)", *command],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == "False\n"


def test_a_file_of_the_user_is_found_without_a_download(tmp_path, monkeypatch):
    """The published name works, too: a dry run does not announce a download."""
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BACKBENCH_ZOO", str(tmp_path))
    fields = {"method": "Some", "arch": Architecture(name="resnet50"), "pretrained_on": "ImageNet"}
    entry, other = (
        Entry(name=name, url=f"https://x.org/{file}", **fields)
        for name, file in (("some_r50", "published.pth"), ("other_r50", "another.pth"))
    )
    torch.save({"w": torch.zeros(9)}, tmp_path / "published.pth")
    assert fetch.is_here(entry)
    assert not fetch.is_here(other)


def test_a_checksum_is_computed_once_until_the_file_changes(tmp_path, monkeypatch):
    """A dry run and the load after it share the checksum; a changed file is refused."""
    computed = []
    digest = hashes.file_digest
    monkeypatch.setattr(hashes, "file_digest", lambda *given: computed.append(given) or digest(*given))
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BACKBENCH_ZOO", str(tmp_path))
    torch.save({"w": torch.zeros(9)}, tmp_path / "renamed.pth")
    sha256 = digest(tmp_path / "renamed.pth", "sha256")
    fields = {"method": "Some", "arch": Architecture(name="resnet50"), "pretrained_on": "ImageNet"}
    entry = Entry(name="some_r50", url="https://x.org/a.pth", sha256=sha256, **fields)
    assert fetch.is_here(entry)
    assert fetch.fetch(entry) == tmp_path / "renamed.pth"
    assert computed == [(tmp_path / "renamed.pth", "sha256")]
    (tmp_path / "renamed.pth").rename(tmp_path / "some_r50.pth")
    torch.save({"w": torch.ones(9)}, tmp_path / "some_r50.pth")
    with pytest.raises(CheckpointError, match="wrong bytes"):
        fetch.is_here(entry)
