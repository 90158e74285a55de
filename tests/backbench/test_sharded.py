"""Data sets in parquet and tar shards: pixels, labels, names, missing and damaged parts, and no extraction."""

import io
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from backbench.data import catalogue, layouts
from backbench.data.catalogue import DataPlaces
from backbench.data.decode import CorruptImage
from backbench.data.layouts import hf_parquet, webdataset
from backbench.errors import DataError
from backbench.files import Changed

CLASSES = ("daisy", "rose", "tulip")


def encoded(seed, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue(), pixels


def table(rows, *, names=CLASSES, image="image", label="label"):
    """A table as `datasets` writes it: (seed, label) for each row."""
    images = pa.array([{"bytes": encoded(seed)[0], "path": None} for seed, _ in rows],
                      pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    found = pa.table({image: images, label: pa.array([value for _, value in rows])})
    if names is None:
        return found
    listed = ", ".join(f'"{name}"' for name in names)
    features = f'{{"{image}": {{"_type": "Image"}}, "{label}": {{"names": [{listed}], "_type": "ClassLabel"}}}}'
    return found.replace_schema_metadata({"huggingface": f'{{"info": {{"features": {features}}}}}'})


@pytest.fixture
def parquet(tmp_path):
    """`train` in two files of two row groups, `validation` in one; label = seed modulo 3."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    rows = [(seed, seed % 3) for seed in range(12)]
    for part in (0, 1):
        file = folder / f"train-0000{part}-of-00002.parquet"
        pq.write_table(table(rows[6 * part : 6 * part + 6]), file, row_group_size=4)
    pq.write_table(table([(seed, seed % 3) for seed in (20, 21, 22)]), folder / "validation-00000-of-00001.parquet")
    return folder.parent


def pack(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def samples(seeds, kind="png"):
    for seed in seeds:
        yield f"{seed:06d}.{kind}", encoded(seed)[0]
        yield f"{seed:06d}.cls", str(seed % 3).encode()
        yield f"{seed:06d}.json", b"{}"


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """`train` in two tar files, `val` in one; label = seed modulo 3."""
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "shards"
    for part in (0, 1):
        pack(root / f"flowers-train-{part:06d}.tar", samples(range(6 * part, 6 * part + 6)))
    pack(root / "flowers-val-000000.tar", samples((20, 21, 22)))
    return root


@pytest.fixture(params=["hf_parquet", "webdataset"])
def layout(request, parquet, tars):
    """(module, folder, split to test on)"""
    if request.param == "hf_parquet":
        return hf_parquet, parquet, "validation"
    return webdataset, tars, "val"


def test_a_split_holds_the_images_in_their_order(layout):
    module, root, test = layout
    assert module.recognise(root) == ("train", test)
    for split, seeds in (("train", range(12)), (test, (20, 21, 22))):
        found = module.read(root, split, dataset="flowers")
        assert (found.dataset, found.split, len(found)) == ("flowers", split, len(seeds))
        assert found.labels.tolist() == [seed % 3 for seed in seeds]
        names = [found.source.name(i) for i in range(len(found))]
        assert len(set(names)) == len(names)
        for i in [*range(len(found)), 0]:
            data, pixels = encoded(list(seeds)[i])
            assert found.source.stored(i) == data and found.source.size(i) == len(data) == found.source.status(i)[0]
            assert (found.source.rgb(i) == pixels).all() and (np.asarray(found.source.pil(i)) == pixels).all()
        assert found.manifest_sha256() == module.read(root, split).manifest_sha256()
        part = found.part(np.array([2, 0]))
        assert part.source.stored(0) == encoded(list(seeds)[2])[0]


def test_it_reaches_the_workers_of_a_loader(layout):
    module, root, _ = layout
    source = pickle.loads(pickle.dumps(module.read(root, "train").source))
    assert source.stored(7) == encoded(7)[0]


def test_a_file_that_changed_is_noticed(layout):
    module, root, _ = layout
    found = module.read(root, "train")
    assert found.source.size(11)
    first, *_, last = sorted(path for path in root.rglob("*train-*") if path.is_file())
    last.write_bytes(first.read_bytes())
    with pytest.raises(Changed, match="changed during the run"):
        found.source.stored(11)


def test_another_split_and_a_missing_part_are_named(layout):
    module, root, _ = layout
    with pytest.raises(DataError, match=r"no .*files of split 'test'.*splits: "):
        module.read(root, "test")
    gone = sorted(path for path in root.rglob("*train-*") if path.is_file())[0]
    if module is webdataset:  # its numbers alone say so
        gone.rename(gone.with_name("flowers-train-000003.tar"))
        (root / "flowers-train-000000.tar").write_bytes((root / "flowers-train-000003.tar").read_bytes())
    else:
        gone.unlink()
    with pytest.raises(DataError, match="missing: "):
        module.read(root, "train")


def test_shards_can_be_a_users_own_data_set(layout):
    module, root, _ = layout
    name = module.__name__.rpartition(".")[2]
    named = catalogue.parse_places([f"flowers={root}"])
    assert catalogue.spelled("flowers", root) == f"flowers={name}:{root}"
    assert len(catalogue.load("flowers", "test", DataPlaces(None, named))) == 3


def test_a_cut_file_is_a_sentence(layout):
    module, root, _ = layout
    file = sorted(path for path in root.rglob("*train-*") if path.is_file())[1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(DataError, match=f"{file.name}: "):
        split = module.read(root, "train")
        split.source.stored(11)


# ---------------------------------------------------------------- parquet


def write_pair(tmp_path, train, test, **fields):
    for split, rows in (("train", train), ("test", test)):
        (tmp_path / split).mkdir(exist_ok=True)
        pq.write_table(table(rows, **fields), tmp_path / split / "0000.parquet")
    return tmp_path


def test_the_names_of_classes_are_those_that_the_files_state(parquet):
    assert hf_parquet.read(parquet, "train").classes == CLASSES


@pytest.mark.parametrize(("labels", "classes"), [(("b", "a"), ("a", "b")), ((10, 9), ("9", "10"))])
def test_without_names_the_labels_of_train_are_the_classes(tmp_path, labels, classes):
    first, second = labels
    root = write_pair(tmp_path, [(0, first), (1, second), (2, first)], [(3, first)], names=None, image="img")
    train, test = (hf_parquet.read(root, split) for split in ("train", "test"))
    assert train.classes == test.classes == classes
    assert train.labels.tolist() == [1, 0, 1] and test.labels.tolist() == [1]


def test_labels_that_are_not_public_leave_the_validation_split(parquet):
    pq.write_table(table([(30, -1), (31, -1)]), parquet / "data" / "test-00000-of-00001.parquet")
    assert hf_parquet.recognise(parquet) == ("train", "validation")
    with pytest.raises(DataError, match=r"2 of 2 images have no label \(-1\)"):
        hf_parquet.read(parquet, "test")


def test_a_label_that_train_lacks_and_a_table_without_images(tmp_path):
    root = write_pair(tmp_path, [(0, "a")], [(1, "b")], names=None)
    with pytest.raises(DataError, match=r"not among the 1 classes: 1, e\.g\. b"):
        hf_parquet.read(root, "test")
    pq.write_table(pa.table({"x": [1.0], "label": [1]}), root / "train" / "0000.parquet")
    with pytest.raises(DataError, match="no column of images"):
        hf_parquet.read(root, "train")


def test_images_by_their_paths_are_refused_by_name(tmp_path):
    images = pa.array([{"bytes": None, "path": "a.jpg"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": images, "label": [0]}), tmp_path / "train.parquet")
    split = hf_parquet.read(tmp_path, "train")
    with pytest.raises(CorruptImage, match=r"train\.parquet#0: the row holds no image's bytes"):
        split.source.pil(0)


def test_without_pyarrow_the_sentence_says_what_to_install(parquet, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'backbench\[parquet\]'"):
        hf_parquet.read(parquet, "train")
    assert layouts.get("hf_parquet") is hf_parquet, "other layouts are listed without it"


# ---------------------------------------------------------------- tar files


def test_the_index_is_kept_until_the_file_changes(tars, tmp_path, monkeypatch):
    before = webdataset.read(tars, "val").manifest_sha256()
    walked = webdataset._walked
    monkeypatch.setattr(webdataset, "_walked", lambda *_: pytest.fail("walked again"))
    assert webdataset.read(tars, "val").manifest_sha256() == before
    monkeypatch.setattr(webdataset, "_walked", walked)
    for kept in (tmp_path / "cache" / "tar").glob("*.npz"):
        kept.write_bytes(b"not an index")
    assert webdataset.read(tars, "val").manifest_sha256() == before
    pack(tars / "flowers-val-000000.tar", samples((20, 23)))
    assert len(webdataset.read(tars, "val")) == 2


def test_nothing_is_extracted_and_other_members_are_counted(tars, tmp_path):
    split = webdataset.read(tars, "train")
    assert split.passed_over == {"files of another ending than images have": (12, "000000.json")}
    assert sorted(path.name for path in tars.iterdir()) == [
        "flowers-train-000000.tar", "flowers-train-000001.tar", "flowers-val-000000.tar"]  # fmt: skip


def test_classes_are_named_by_a_list_or_are_the_words(tars):
    (tars / "classes.txt").write_text("\n".join([*CLASSES, "poppy"]))
    assert webdataset.read(tars, "val").classes == (*CLASSES, "poppy")
    (tars / "classes.txt").write_text("daisy\nrose\n")
    with pytest.raises(DataError, match="names 2 classes; the labels go up to 2"):
        webdataset.read(tars, "val")
    (tars / "classes.txt").unlink()
    words = [
        member for seed in (20, 21) for member in ((f"{seed}.jpg", encoded(seed, "JPEG")[0]), (f"{seed}.cls", b"oak"))
    ]
    pack(tars / "flowers-val-000000.tar", words)
    with pytest.raises(DataError, match=r"labels of 'val' that no training image has: 1, e\.g\. oak"):
        webdataset.read(tars, "val")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", b"x")], "images or labels alone: 1, e.g. /a"),
        ([("a.cls", b"0")], "images or labels alone: 1, e.g. /a"),
        ([("a.json", b"{}")], "no image in it"),
        ([("a.png", b"x"), ("a.cls", b"0"), ("a.jpg", b"y")], "'a.jpg' is there twice"),
        ([("a.png", b"x"), ("a.cls", b"\x1b[31m")], "labels that are neither word nor number"),
        ([("a.png", b"x"), ("a.cls", b"1" * 300)], "labels that are neither word nor number"),
        ([("a.png", b"x"), ("a.cls", b"5")], "labels without a training image: 5, e.g. 0"),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:20],
)
def test_a_tar_that_is_no_such_data_set_is_a_sentence(tmp_path, monkeypatch, members, words):
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    pack(tmp_path / "data" / "train-0.tar", members)
    with pytest.raises(DataError) as error:
        webdataset.read(tmp_path / "data", "train")
    assert words in str(error.value) and "\x1b" not in str(error.value)


BLOCK = 512  # bytes; a sample of `samples` has three members of a header and a block each


def ends_between_members(data):
    return data[: 3 * 2 * BLOCK]


def flips_a_bit_of_a_header(data):
    return data[: 3 * 2 * BLOCK] + bytes([data[3 * 2 * BLOCK] ^ 1]) + data[3 * 2 * BLOCK + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (ends_between_members, "no end marker"),
        (flips_a_bit_of_a_header, "a damaged header"),
        (lambda data: data + data, "something follows its end marker; were tar files joined?"),
    ],
    ids=["cut", "flipped", "joined"],
)
def test_a_tar_that_would_lose_samples_is_refused(tars, damage, words):
    file = tars / "flowers-train-000001.tar"
    data = file.read_bytes()
    assert data[4 * BLOCK : 5 * BLOCK].rstrip(b"\0").startswith(b"000006.json"), "the third member of the first sample"
    file.write_bytes(damage(data))
    with pytest.raises(DataError, match=rf"train-000001\.tar: not a whole tar file .*\({words}.*make it again"):
        webdataset.read(tars, "train")


def test_links_in_a_tar_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    Path(tmp_path / "secret.png").write_bytes(encoded(1)[0])
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
        header = tarfile.TarInfo("a.cls")
        header.size = 1
        tar.addfile(header, io.BytesIO(b"0"))
    with pytest.raises(DataError, match="images or labels alone"):
        webdataset.read(tmp_path, "train")


def test_a_compressed_tar_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "train-0.tar", "w:gz") as tar:
        header = tarfile.TarInfo("a.png")
        tar.addfile(header)
    with pytest.raises(DataError, match="not a whole tar file that is not compressed"):
        webdataset.read(tmp_path, "train")
