"""The specification of a segmentation protocol: what it refuses, how it scales, and torchvision's dilated ResNet."""

from __future__ import annotations

import pytest
import torch
from backbones import make_backbone
from pydantic import ValidationError
from segmented import tiny

from transfer.segmentation.dilation import dilated
from transfer.segmentation.spec import scaled
from transfer.tasks.semantic_segmentation import Config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strides": (2, 2, 2, 2)}, "strides.0. must be 1"),
        ({"dilations": (1, 1, 1, 3)}, "dilations"),
        ({"ratio": (2.0, 0.5)}, "smaller number first"),
        ({"resize": (80, 160)}, "longer one first"),
        ({"stride_test": (65, 64)}, "leaves gaps"),
        ({"milestones": (3,)}, "takes no milestones"),
        ({"schedule": "steps", "milestones": (4, 4)}, "do not rise"),
        ({"lr_min": 0.1}, "is above lr"),
        ({"head": "upernet", "head_dilation": 6}, "fields of head 'fcn'"),
        ({"crop": (16, 64)}, "crop"),
    ],
)
def test_an_impossible_specification_is_a_sentence(fields, words):
    with pytest.raises(ValidationError, match=words):
        tiny(**fields)


def test_another_batch_scales_rates_and_schedule():
    spec = tiny(schedule="steps", milestones=(21, 27), iterations=30, batch=16, lr=0.004, lr_min=0.0)
    found = scaled(spec, 4)
    assert (found.batch, found.lr, found.iterations, found.milestones) == (4, 0.001, 120, (84, 108))
    assert scaled(spec, 16) is spec
    assert scaled(spec, 160).milestones == (2, 3), "no drop is lost"


def test_train_and_test_must_differ():
    with pytest.raises(ValidationError, match="train and test are both 'val'"):
        Config(train="val")


def test_every_preset_is_a_valid_specification():
    for name, preset in Config.PRESETS.items():
        spec = preset.fields["spec"]
        assert type(spec).model_validate(spec.model_dump()) == spec, name


@pytest.mark.parametrize(("strides", "dilations"), [((1, 2, 2, 1), (1, 1, 1, 2)), ((1, 2, 1, 1), (1, 1, 2, 4))])
def test_a_dilated_trunk_is_torchvisions(strides, dilations):
    from torchvision.models import resnet50
    from torchvision.models._utils import IntermediateLayerGetter

    backbone = make_backbone("resnet50", 1)
    theirs = resnet50(replace_stride_with_dilation=[stride == 1 for stride in strides[1:]])
    theirs.load_state_dict({**backbone.state, "fc.weight": theirs.fc.weight, "fc.bias": theirs.fc.bias})
    stages = IntermediateLayerGetter(theirs.eval(), {f"layer{i}": str(i) for i in range(1, 5)})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = dilated(backbone.build().eval(), strides, dilations).stages(image), stages(image)
    for ours, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(ours, other)


def test_a_trunk_without_dilation_stays_as_it_is():
    backbone, image = make_backbone("resnet18", 0.25), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = dilated(backbone.build().eval(), (1, 2, 2, 2), (1, 1, 1, 1)).stages(image)
        for found, expected in zip(ours, backbone.build().eval().stages(image), strict=True):
            assert torch.equal(found, expected)
