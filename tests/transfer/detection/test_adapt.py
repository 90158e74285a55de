"""The adaptations of Detectron2, mmcv-lite and mmengine to current versions."""

from __future__ import annotations

import importlib
import sys
import types
import warnings

import numpy as np
import pytest
import torch
import warm

from transfer.detection import engines
from transfer.detection.adapt import detectron2_v06, mmcv_lite, mmengine_resume, notices, text_models


@pytest.fixture
def no_mmcv(monkeypatch):
    """Hide mmcv from the import system."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        monkeypatch.delitem(sys.modules, name)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name[:4] == "mmcv" else found(name, *a))
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    monkeypatch.delitem(sys.modules, "mmcv._ext")


# ---------------------------------------------------------------- NMS


def plain_nms(boxes, scores, threshold, offset):
    """Rows kept by falling score, one pair at a time."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        x0, y0, x1, y1 = boxes[i]
        for j in kept:
            u0, v0, u1, v1 = boxes[j]
            wide = max(0.0, min(x1, u1) - max(x0, u0) + offset)
            high = max(0.0, min(y1, v1) - max(y0, v0) + offset)
            areas = (x1 - x0 + offset) * (y1 - y0 + offset) + (u1 - u0 + offset) * (v1 - v0 + offset)
            if wide * high / (areas - wide * high) > threshold:
                break
        else:
            kept.append(i)
    return kept


def random_boxes(count, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 20
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator, dtype=dtype) * 15 + 0.5], dim=1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_keeps_what_a_plain_loop_keeps(offset, dtype, threshold):
    different = 0
    for seed in range(5):
        boxes = random_boxes(60, seed, dtype)
        scores = torch.rand(60, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        expected = plain_nms(boxes.tolist(), scores.tolist(), threshold, offset)
        assert mmcv_lite.nms(boxes, scores, threshold, offset).tolist() == expected
        different += expected != plain_nms(boxes.tolist(), scores.tolist(), threshold, 1 - offset)
    assert different, "the offset decides something here"


def test_nms_of_nothing_and_of_half():
    assert mmcv_lite.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0).shape == (0,)
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [6, 6, 9, 9]], dtype=torch.float16)
    assert mmcv_lite.nms(boxes, torch.tensor([0.1, 0.2, 0.3]).half(), 0.5, 0).tolist() == [2, 1]


# ---------------------------------------------------------------- ROIAlign


def bilinear(plane, y, x):
    """The value at (y, x) between pixels; 0 more than a pixel outside."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(())
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    upper = plane[y0, x0] * (1 - fx) + plane[y0, x1] * fx
    return upper * (1 - fy) + (plane[y1, x0] * (1 - fx) + plane[y1, x1] * fx) * fy


def plain_roi_align(pixels, rois, size, scale, ratio, aligned):
    """Mean of bilinear samples in each of size x size cells, one sample at a time; differentiable by autograd."""
    shift = 0.5 if aligned else 0.0
    out = []
    for image, *corners in rois.tolist():
        x0, y0, x1, y1 = (c * scale - shift for c in corners)
        wide, high = x1 - x0, y1 - y0
        if not aligned:
            wide, high = max(wide, 1.0), max(high, 1.0)
        count_y = ratio if ratio > 0 else int(np.ceil(high / size))
        count_x = ratio if ratio > 0 else int(np.ceil(wide / size))
        for plane in pixels[int(image)]:
            for row in range(size):
                for column in range(size):
                    samples = [
                        bilinear(
                            plane,
                            y0 + (row + (i + 0.5) / count_y) * high / size,
                            x0 + (column + (j + 0.5) / count_x) * wide / size,
                        )
                        for i in range(count_y)
                        for j in range(count_x)
                    ]
                    out.append(torch.stack(samples).mean() if samples else pixels.new_zeros(()))
    return torch.stack(out).view(len(rois), pixels.shape[1], size, size)


ROIS = [[0, 1.3, 2.1, 13.9, 11.2], [1, -3, -2, 9, 30], [1, 4, 4, 4.6, 4.4], [0, 0, 0, 16, 14]]


def served(pixels, rois, size, scale, ratio, aligned, gradient=None):
    """Output of the served forward, or the gradient from the served backward."""
    fields = {"aligned_height": size, "aligned_width": size, "spatial_scale": scale, "sampling_ratio": ratio,
              "pool_mode": 1, "aligned": aligned}  # fmt: skip
    none = pixels.new_zeros(0)
    if gradient is None:
        out = pixels.new_full((len(rois), pixels.shape[1], size, size), 7)
        mmcv_lite.roi_align_forward(pixels, rois, out, none, none, **fields)
        return out
    out = torch.full_like(pixels, 7)
    mmcv_lite.roi_align_backward(gradient, rois, none, none, out, **fields)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_and_its_gradient_are_those_of_a_plain_loop(aligned, ratio):
    pixels = torch.randn(2, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    expected = plain_roi_align(pixels, rois, 3, 0.5, ratio, aligned)
    torch.testing.assert_close(served(pixels.detach(), rois, 3, 0.5, ratio, aligned), expected.detach())
    weight = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), pixels)
    torch.testing.assert_close(served(pixels.detach(), rois, 3, 0.5, ratio, aligned, weight), gradient)


def test_roi_align_in_float32_is_that_in_float64():
    pixels, rois = torch.randn(2, 3, 9, 9, dtype=torch.float64), torch.tensor(ROIS, dtype=torch.float64)
    exact = served(pixels, rois, 4, 0.5, 0, True)
    torch.testing.assert_close(served(pixels.float(), rois.float(), 4, 0.5, 0, True), exact.float())


def test_the_gradient_is_the_finite_difference():
    rois = torch.tensor(ROIS, dtype=torch.float64)

    class Served(torch.autograd.Function):
        @staticmethod
        def forward(ctx, pixels):
            ctx.shape = pixels.shape
            return served(pixels, rois, 2, 0.5, 0, True)

        @staticmethod
        def backward(ctx, gradient):
            return served(gradient.new_zeros(ctx.shape), rois, 2, 0.5, 0, True, gradient)

    pixels = torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Served.apply, (pixels,))


def test_no_rois_pool_nothing_and_have_no_gradient():
    pixels, none = torch.randn(1, 2, 5, 5), torch.zeros(0, 5)
    assert served(pixels, none, 3, 1.0, 0, True).shape == (0, 2, 3, 3)
    assert served(pixels, none, 3, 1.0, 0, True, torch.zeros(0, 2, 3, 3)).abs().sum() == 0


def layers_of(name: str):
    """(ROIAlign class, NMS of (boxes, scores, threshold)) as an engine's models use them."""
    engine = engines.get(name)
    if engine.missing() is not None:
        pytest.skip(engine.missing())
    engine.prepare()
    if name == "mmdet":
        from mmcv.ops import RoIAlign, nms

        return RoIAlign, lambda *arguments: nms(*arguments)[1]
    from detectron2.layers import ROIAlign, batched_nms

    return ROIAlign, lambda boxes, scores, threshold: batched_nms(boxes, scores, torch.zeros(len(boxes)), threshold)


@pytest.mark.parametrize("ratio", [0, 2])
def test_both_engines_pool_the_same_and_as_a_plain_loop_does(ratio):
    """Aligned, as both protocols have it: values and gradients."""
    rois, results = torch.tensor(ROIS), []
    for name in ("detectron2", "mmdet"):
        layer, _ = layers_of(name)
        pixels = torch.randn(2, 2, 7, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        pooled = layer((3, 3), 0.5, ratio, aligned=True)(pixels, rois)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), pixels)
        results.append((pooled.detach(), gradient))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    plain = pixels.detach().double().requires_grad_()
    expected = plain_roi_align(plain, rois.double(), 3, 0.5, ratio, True)
    (gradient,) = torch.autograd.grad(expected.square().sum(), plain)
    torch.testing.assert_close(results[0][0], expected.detach().float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0][1], gradient.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["detectron2", "mmdet"])
def test_engines_layers_on_nothing_and_their_nms(name):
    layer, nms = layers_of(name)
    pixels = torch.randn(1, 2, 5, 5, requires_grad=True)
    pooled = layer((3, 3), 1.0, 0, aligned=True)(pixels, torch.zeros(0, 5))
    assert pooled.shape == (0, 2, 3, 3)
    pooled.sum().backward()
    assert pixels.grad.abs().sum() == 0
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    boxes, scores = random_boxes(60, 7, torch.float32), torch.rand(60, generator=torch.Generator().manual_seed(7))
    kept = nms(boxes, scores, 0.5).tolist()
    assert kept == plain_nms(boxes.tolist(), scores.tolist(), 0.5, 0)
    assert 10 < len(kept) < 60


def test_maximum_pooling_is_refused():
    pixels, none = torch.zeros(1, 1, 2, 2), torch.zeros(0)
    with pytest.raises(NotImplementedError, match="maximum pooling needs a compiled mmcv"):
        mmcv_lite.roi_align_forward(pixels, torch.zeros(1, 5), pixels, none, none, 1, 1, 1.0, 0, 0, True)


# ---------------------------------------------------------------- the module in mmcv's place


def test_the_module_serves_three_operators_and_refuses_the_others_when_they_are_called(no_mmcv):
    mmcv_lite.apply()
    module = sys.modules["mmcv._ext"]
    assert not mmcv_lite.is_compiled()
    assert module.nms is mmcv_lite.nms
    refused = module.deform_conv_forward  # importing mmcv.ops asks for all of them
    with pytest.raises(NotImplementedError, match="'deform_conv_forward' needs a compiled mmcv"):
        refused(1, of=2)
    mmcv_lite.apply()
    assert sys.modules["mmcv._ext"] is module
    assert importlib.util.find_spec("json") is not None


def test_a_compiled_mmcv_is_left_alone(no_mmcv, monkeypatch):
    theirs = types.ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", theirs)
    assert mmcv_lite.is_compiled()
    mmcv_lite.apply()
    assert sys.modules["mmcv._ext"] is theirs


def test_a_compiled_mmcv_is_found_before_it_is_imported(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert not mmcv_lite.is_compiled()
    (tmp_path / "mmcv" / "_ext.py").write_text("nms = 'theirs'")
    importlib.invalidate_caches()
    assert mmcv_lite.is_compiled()
    mmcv_lite.apply()
    assert importlib.import_module("mmcv._ext").nms == "theirs"
    for name in ("mmcv", "mmcv._ext"):
        monkeypatch.delitem(sys.modules, name)


def test_mmengine_is_told_that_mmcv_is_not_the_full_one():
    misc = pytest.importorskip("mmengine.utils.dl_utils.misc")
    pytest.importorskip("mmcv")
    mmcv_lite.apply()
    assert misc.mmcv_full_available() == mmcv_lite.is_compiled()


# ---------------------------------------------------------------- mmengine and Detectron2


def test_checkpoints_of_mmengine_can_be_read_and_nothing_else_is_let_in(tmp_path):
    buffers = pytest.importorskip("mmengine.logging.history_buffer")
    history = buffers.HistoryBuffer()
    for value in (1.5, 2.5):
        history.update(value)
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"loss": np.float64(0.5), "iter": np.int64(3)}}
    torch.save({"message_hub": hub}, tmp_path / "iter_1.pth")
    torch.save({"message_hub": types.SimpleNamespace()}, tmp_path / "other.pth")
    torch.save({"message_hub": buffers.HistoryBuffer.update}, tmp_path / "method.pth")
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(Exception, match="HistoryBuffer"):
            torch.load(tmp_path / "iter_1.pth")
        for _ in range(2):
            mmengine_resume.apply()
        back = torch.load(tmp_path / "iter_1.pth")["message_hub"]
        assert back["runtime_info"] == {"loss": 0.5, "iter": 3}
        read = back["log_scalars"]["train/loss"]
        assert read.mean() == 2.0
        assert [a.tolist() for a in read.data] == [[1.5, 2.5], [1, 1]]
        assert read.statistics("max") == 2.5
        with pytest.raises(Exception, match="SimpleNamespace"):
            torch.load(tmp_path / "other.pth")
        with pytest.raises(Exception, match="asks for 'update'"):
            torch.load(tmp_path / "method.pth")
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_old_names_come_back_and_present_ones_stay(monkeypatch):
    from PIL import Image

    monkeypatch.delattr(Image, "LINEAR", raising=False)
    kept = np.bool  # NumPy 2 gave this name a new meaning
    for name in ("str", "object"):
        monkeypatch.delitem(vars(np), name, raising=False)
    for _ in range(2):
        detectron2_v06.apply()
    assert Image.LINEAR == Image.Resampling.BILINEAR
    assert np.str is str
    assert np.object is object
    assert np.bool is kept
    del np.str, np.object  # or the other tests would see them


def test_notices_of_the_engines_are_silent_and_other_warnings_are_not():
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        notices.apply()
        torch.functional.meshgrid(torch.arange(2), torch.arange(3))  # as the anchor generators call it
        warnings.warn("torch.meshgrid: something else", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["torch.meshgrid: something else"]


# ---------------------------------------------------------------- text models


def test_a_module_left_out_is_absent_in_the_block_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "transformers")
    with text_models.left_out(), pytest.raises(ImportError):
        importlib.import_module("transformers")
    assert "transformers" not in sys.modules
    there = types.ModuleType("transformers")
    monkeypatch.setitem(sys.modules, "transformers", there)
    with text_models.left_out():
        assert importlib.import_module("transformers") is there


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transfer.detection.engines.mmdet", "transfer.segmentation.engines.mmseg"])
def test_an_engine_starts_without_transformers_and_leaves_it_importable(engine):
    pytest.importorskip("transformers", reason="transformers is not installed")
    if reason := importlib.import_module(engine).missing():
        pytest.skip(reason)
    lines = (
        f"import sys, {engine} as engine; engine.prepare(); print('transformers' in sys.modules); import transformers"
    )
    done = warm.run(["-c", lines], modules=warm.ENGINES)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
