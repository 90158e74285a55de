"""Data sets: `catalogue` finds them by name, `splits` defines a split, `layouts` has one module per folder layout."""
