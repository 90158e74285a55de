"""Every detection engine: what its module must offer, and that cells can name it."""

from __future__ import annotations

import inspect
import typing

import pytest

from core.errors import ConfigError
from transfer.detection import engines
from transfer.detection.run import DetectionConfig


def test_the_engines_of_the_protocols_are_there():
    assert {"detectron2", "mmdet"} <= set(engines.names())


def test_a_cell_can_name_every_engine_and_no_other():
    assert sorted(typing.get_args(DetectionConfig.model_fields["engine"].annotation)) == engines.names()


@pytest.mark.parametrize("name", engines.names())
def test_module_offers_an_engine(name):
    engine = engines.get(name)
    assert engine.__doc__
    for function, member in vars(engines.Engine).items():
        if inspect.isfunction(member) and not function.startswith("_"):
            offered = getattr(engine, function)
            assert offered.__doc__
            wanted = [p for p in inspect.signature(member).parameters if p != "self"]
            assert list(inspect.signature(offered).parameters) == wanted, function


@pytest.mark.parametrize("name", engines.names())
def test_absence_is_a_reason_that_says_what_to_do(name):
    reason = engines.get(name).missing()
    assert reason is None or "python -m transfer.detection install" in reason


@pytest.mark.parametrize("name", engines.names())
def test_a_present_engine_names_its_version_and_works(name):
    engine = engines.get(name)
    if engine.missing() is not None:
        pytest.skip(engine.missing())
    engine.prepare()
    engine.prepare()  # more than once is as good as once
    assert any(character.isdigit() for character in engine.version())
    assert isinstance(engine.compiled(), bool)
    engine.try_operators()


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown engine 'detectron'; did you mean 'detectron2'"):
        engines.get("detectron")
