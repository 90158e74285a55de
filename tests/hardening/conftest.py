"""Hostile inputs, kills and damage: all cases with BACKBENCH_HARDENING=all, otherwise a seeded sample of each function."""

from __future__ import annotations

from pathlib import Path

import pytest

_SAMPLE = 4  # parameters of one test function in an ordinary run
# Sample sizes of tests that start processes and train; each case takes seconds to a minute.
_SAMPLE_OF = {
    "test_a_killed_pretraining_resumes_to_the_same_bits": 2,
    "test_two_ranks_resume_to_the_same_bits": 1,
    "test_run_all_ends_with_all_that_it_started": 1,
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


@pytest.hookimpl(tryfirst=True)  # before the samples are drawn
def pytest_collection_modifyitems(items):
    """Mark the tests of this folder as slow, and as a sample of their parameters."""
    for item in items:
        if _HERE in item.path.parents:
            function = item.nodeid.partition("[")[0].rpartition("::")[2]
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.sample(_SAMPLE_OF.get(function, _SAMPLE)))
