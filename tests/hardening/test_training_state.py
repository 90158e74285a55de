"""Damage to the state of a killed training: the number does not change, and there is no traceback."""

import io
import os

import pytest
import torch

from backbench.errors import BackbenchError
from transfer import supervised
from transfer.heads import Classifier, Heads
from transfer.supervised import Order, SgdConfig, batches_of, fit

CPU = torch.device("cpu")
ORDER = Order(40, 16, 6, seed=0)
CONFIG = SgdConfig(batch=16, epochs=6, weight_decay=1e-3)


class _Killed(Exception):
    pass


def train(resume, *, killed_after=None):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=generator), torch.arange(40) % 3

    def batches(start):
        for step, one in enumerate(batches_of(x, y, ORDER)(start), start=start):
            if step == killed_after:
                raise _Killed
            yield one

    model = Classifier(None, Heads(5, 3, (0.5, 0.05), 0, "affine"))
    fit(model, batches, CONFIG, ORDER, device=CPU, resume=resume)
    return model.state_dict()


def state_of(file):
    return torch.load(file, weights_only=True)


def flip(file, share):
    data = bytearray(file.read_bytes())
    data[round(len(data) * share)] ^= 0x40
    file.write_bytes(data)


def flip_in_a_weight(file):
    """Flip one bit of a number, which torch.load does not notice."""
    weight = state_of(file)["model"]["heads.linear.0.weight"].numpy().tobytes()
    flip(file, (file.read_bytes().index(weight) + 7) / file.stat().st_size)


def changed(change):
    def damage(file):
        state = state_of(file)
        torch.save(change(state) or state, file)

    return damage


def in_its_place(make):
    def damage(file):
        file.unlink()
        make(file)

    return damage


def as_words(file):
    out = io.BytesIO()
    torch.save("a word", out)
    file.write_bytes(out.getvalue())


DAMAGES = {
    "cut in half": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "cut by a byte": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "cut to nothing": lambda f: f.write_bytes(b""),
    "zeros": lambda f: f.write_bytes(b"\0" * f.stat().st_size),
    "words": lambda f: f.write_text("no state"),
    "a web page": lambda f: f.write_text("<html>not found</html>"),
    "a bit near the start": lambda f: flip(f, 0.01),
    "a bit of a weight": flip_in_a_weight,
    "a saved word": as_words,
    "no step": changed(lambda s: s.pop("step") and None),
    "a step that is a word": changed(lambda s: s.update(step="four")),
    "a step that is none": changed(lambda s: s.update(step=None)),
    "no model": changed(lambda s: s.pop("model") and None),
    "a model that lacks a tensor": changed(lambda s: s["model"].popitem() and None),
    "a model of another shape": changed(lambda s: s["model"].update({"heads.linear.0.weight": torch.zeros(3, 9)})),
    "a model that is a list": changed(lambda s: s.update(model=[1, 2])),
    "no optimiser": changed(lambda s: s.pop("optimizer") and None),
    "an optimiser of fewer groups": changed(lambda s: s["optimizer"]["param_groups"].pop() and None),
    "an optimiser that is empty": changed(lambda s: s.update(optimizer={})),
    "a list": changed(lambda s: [s]),
    "a pipe": in_its_place(os.mkfifo),
    "a link to nothing": in_its_place(lambda f: f.symlink_to("nowhere")),
    "a link to a device": in_its_place(lambda f: f.symlink_to("/dev/zero")),
}


@pytest.fixture
def left(tmp_path, monkeypatch):
    """Return the state of a training killed in its second epoch."""
    file = tmp_path / "training.ckpt"
    with monkeypatch.context() as patched, pytest.raises(_Killed):
        patched.setattr(supervised, "_SAVE_EVERY_S", -1.0)
        train(file, killed_after=4)
    assert state_of(file)["step"] == 3
    return file


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_state_starts_anew_with_a_word(left, capsys, kind):
    whole = train(None)
    DAMAGES[kind](left)
    capsys.readouterr()
    again = train(left)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    said = capsys.readouterr()
    assert "starting from step 0" in " ".join((said.out + said.err).split())
    assert not os.path.lexists(left), "a finished training leaves no state"


@pytest.mark.parametrize("share", [0.003 + 0.047 * n for n in range(22)], ids=lambda share: f"at {share:.1%}")
def test_a_flipped_bit_never_changes_a_number(left, share):
    """Readers ignore many bits of a zip (dates, attributes), so the training may resume from the state or not."""
    whole = train(None)
    flip(left, share)
    again = train(left)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_a_sound_state_goes_on_to_the_same_bits(left, capsys):
    whole = train(None)
    again = train(left)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    said = capsys.readouterr()
    assert "resuming after step 3" in " ".join((said.out + said.err).split())


def test_a_folder_in_its_place_is_a_sentence_before_the_training(left):
    left.unlink()
    left.mkdir()
    with pytest.raises(BackbenchError, match="a folder is in the way"):
        train(left, killed_after=0)
