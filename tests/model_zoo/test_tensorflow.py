"""SimCLR's TensorFlow variables: the order of their creation, their containers, dropped variables."""

import pickle

import numpy as np
import pytest
import torch
from backbones import initial

from backbench.errors import CheckpointError
from model_zoo.architecture import Architecture
from model_zoo.formats import simclr_tensorflow
from model_zoo.load import load

ARCH = Architecture(name="resnet50", width=0.5)


@pytest.fixture(scope="module")
def state():
    return initial(ARCH, 4)


@pytest.fixture
def variables(state):
    return {name: tensor.numpy() for name, tensor in simclr_tensorflow.example(state, ARCH).items()}


def test_a_blocks_projection_comes_before_its_first_convolution(state, variables):
    """The numbers are from google-research/simclr resnet.py, not derived from our table."""
    for theirs, ours in {
        "conv2d": "conv1",
        "conv2d_1": "layer1.0.downsample.0",
        "conv2d_2": "layer1.0.conv1",
        "conv2d_4": "layer1.0.conv3",
        "conv2d_5": "layer1.1.conv1",
        "conv2d_11": "layer2.0.downsample.0",
        "conv2d_12": "layer2.0.conv1",
        "conv2d_24": "layer3.0.downsample.0",
        "conv2d_43": "layer4.0.downsample.0",
        "conv2d_52": "layer4.2.conv3",
    }.items():
        kernel = torch.from_numpy(variables[f"base_model/{theirs}/kernel"])
        assert torch.equal(kernel, state[f"{ours}.weight"].permute(2, 3, 1, 0)), theirs
    assert "base_model/conv2d_53/kernel" not in variables
    assert np.array_equal(variables["base_model/batch_normalization_2/gamma"], state["layer1.0.bn1.weight"].numpy())


@pytest.mark.parametrize("container", ["npz", "pickle"])
def test_arrays_in_both_containers(container, state, variables, tmp_path):
    path = tmp_path / f"simclr.{'npz' if container == 'npz' else 'pkl'}"
    if container == "npz":
        np.savez(path, **variables)
    else:
        path.write_bytes(pickle.dumps(variables))
    backbone = load(path)
    assert backbone.format == "simclr_tensorflow"
    assert backbone.arch == ARCH.model_copy(update={"pool_padding": "same"})
    assert (backbone.input.mean, backbone.input.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    counted = [name for name in state if name.endswith("num_batches_tracked")]
    assert all(torch.equal(backbone.state[name], state[name]) for name in state if name not in counted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("base_model/conv2d_52/kernel"), "missing|convolutions"),
        (lambda v: v.pop("base_model/batch_normalization_9/beta"), "1 of .* tensors missing"),
        (lambda v: v.update({"base_model/conv2d_53/kernel": np.zeros((1, 1, 8, 8), np.float32)}), "54 convolutions"),
        (lambda v: v.update({"base_model/dense/kernel": np.zeros((8, 8), np.float32)}), "left over.*base_model/dense"),
    ],
)
def test_what_does_not_fit_is_refused(change, words, variables, tmp_path):
    change(variables)
    np.savez(tmp_path / "simclr.npz", **variables)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "simclr.npz")


def test_an_npz_with_objects_or_a_bomb_is_refused(tmp_path):
    np.savez(tmp_path / "code.npz", **{"base_model/conv2d/kernel": np.array([{}], dtype=object)})
    with pytest.raises(CheckpointError, match="not a readable file of arrays"):
        load(tmp_path / "code.npz")
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(20_000_000, np.float32))
    with pytest.raises(CheckpointError, match="refused"):
        load(tmp_path / "bomb.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "bomb.npz").read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"cut\.npz"):
        load(tmp_path / "cut.npz")
