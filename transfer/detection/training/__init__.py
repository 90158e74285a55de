"""Training loop and checkpoints shared by all engines, that of segmentation too."""
