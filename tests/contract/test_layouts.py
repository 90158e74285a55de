"""Every data set by name, on rendered scenes in its layout: the result of `read`, and errors for missing files."""

from __future__ import annotations

import numpy as np
import pytest

from backbench.data import catalogue, demo, layouts
from backbench.data.catalogue import DataPlaces
from backbench.data.masks import faults
from backbench.errors import DataError

# ImageNet-100 has ImageNet's layout, and no separate scenes.
OF_THE_SCENES = {name: {"imagenet100": "imagenet"}.get(name, name) for name in catalogue.known()}


@pytest.fixture(scope="module")
def scenes() -> DataPlaces:
    root = demo.root()
    return DataPlaces(None, {name: root / folder for name, folder in OF_THE_SCENES.items() if (root / folder).is_dir()})


@pytest.mark.parametrize("name", catalogue.known())
@pytest.mark.parametrize("role", ["train", "test"])
def test_a_split_is_images_with_labels_and_names(name, role, scenes):
    if name not in scenes.named:
        pytest.skip(f"the scenes are not rendered in {name}'s layout")
    split = catalogue.load(name, role, scenes)
    assert split.dataset == name and split.split == getattr(catalogue.info(name), role)
    assert len(split) == len(split.source) > 0 and len(split.classes) > 1
    if split.labels is None:
        masks = catalogue.layout_of(name).masks(scenes.of(name), split.split)
        assert "semantic" in layouts.labels(catalogue.info(name).layout) and len(masks.source) == len(split)
        assert not list(faults(split.source, masks, range(len(split))))
    else:
        assert split.labels.shape in ((len(split),), (len(split), len(split.classes)))
    assert len({split.source.name(i) for i in range(len(split))}) == len(split), "names of images are unique"
    pixels = split.source.rgb(0)
    assert pixels.dtype == np.uint8 and pixels.shape == (*reversed(split.source.pil(0).size), 3)
    assert split.source.size(0) > 0 and split.source.stored(0)
    assert split.manifest_sha256() == catalogue.load(name, role, scenes).manifest_sha256()


@pytest.mark.parametrize("name", catalogue.known())
def test_an_empty_folder_is_an_error_that_names_it(name, tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        catalogue.load(name, "test", DataPlaces(None, {name: tmp_path}))


@pytest.mark.parametrize("layout", layouts.names())
def test_layouts_say_what_they_read(layout):
    module = layouts.get(layout)
    assert module.__doc__ and module.read.__doc__ and module.recognise.__doc__
    assert module.LABELS and {"class", "classes", "boxes", "masks", "semantic"} >= module.LABELS
    assert hasattr(module, "masks") == ("semantic" in module.LABELS)


@pytest.mark.parametrize("name", catalogue.known())
def test_a_layout_is_recognised_with_the_splits_of_its_data_set(name, scenes, tmp_path):
    if name not in scenes.named:
        pytest.skip(f"the scenes are not rendered in {name}'s layout")
    known = catalogue.info(name)
    assert layouts.recognise(scenes.of(name)) == (known.layout, known.train, known.test)
    assert layouts.recognise(tmp_path) is None
