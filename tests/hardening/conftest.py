"""Hostile inputs, kills and damage: all cases with BACKBENCH_HARDENING=all, otherwise a seeded sample of each test."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

_SAMPLE = 4  # parameters of one test function in an ordinary run
# Sample sizes of tests that start processes and train; each case takes seconds to a minute.
_SAMPLE_OF = {
    "test_a_killed_pretraining_resumes_to_the_same_bits": 3,
    "test_two_ranks_resume_to_the_same_bits": 1,
    "test_run_all_ends_with_all_that_it_started": 2,
    "test_a_killed_run_ends_in_the_number_of_a_whole_one": 1,
    "test_a_file_that_may_not_grow": 1,
    "test_a_thousand_steps_do_not_grow": 1,
    "test_help_imports_nothing_heavy": 3,
    "test_an_entry_point_whose_output_leads_nowhere": 2,
    "test_an_environment_that_describes_no_job": 2,
    "test_a_world_size_left_in_the_environment_is_no_hang": 1,
    "test_more_processes_than_a_machine_bears_are_refused": 1,
}
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    """Mark tests in this folder as slow; in an ordinary run, keep a few parameters of each function, chosen by the seed."""
    by_function: dict[str, list[pytest.Item]] = {}
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            by_function.setdefault(item.nodeid.partition("[")[0], []).append(item)
    if os.environ.get("BACKBENCH_HARDENING") == "all":
        return
    seed = os.environ.get("BACKBENCH_HARDENING_SEED", "0")
    kept = set()
    for function, its in by_function.items():
        wanted = min(_SAMPLE_OF.get(function.rpartition("::")[2], _SAMPLE), len(its))
        kept |= {id(i) for i in random.Random(f"{seed} {function}").sample(its, wanted)}
    left_out = [i for its in by_function.values() for i in its if id(i) not in kept]
    config.hook.pytest_deselected(items=left_out)
    gone = {id(i) for i in left_out}
    items[:] = [i for i in items if id(i) not in gone]
