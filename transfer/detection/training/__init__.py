"""Training loop and checkpoints shared by both engines."""
