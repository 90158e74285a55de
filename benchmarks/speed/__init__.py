"""Performance benchmarks, each against a peer or the bare limit in the same run: `python benchmarks/speed/<x>.py`."""
