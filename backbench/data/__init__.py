"""Data sets: by name in `catalogue`, what a split is in `splits`, one module a layout in `layouts`."""
