"""Detection and instance segmentation on two engines. Read `spec.py`, then `engines/`."""
