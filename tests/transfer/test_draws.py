"""Random draws of one image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transfer.draws import draws_of


@pytest.mark.parametrize("key", [(0, 0, 0), (3, 1, 9), (2**31, 99, 1_281_166)])
def test_draws_are_those_of_a_seeded_generator_and_leave_none_behind(key):
    torch.manual_seed(5)
    expected_after = torch.rand(4)
    torch.manual_seed(5)
    with draws_of(*key):
        found = torch.rand(4)
    assert torch.equal(torch.rand(4), expected_after)
    high, low = (int(word) for word in np.random.SeedSequence(key).generate_state(2, np.uint32))
    torch.manual_seed(high * 2**32 + low)
    assert torch.equal(found, torch.rand(4))
