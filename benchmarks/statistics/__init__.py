"""Statistics of comparisons, as pure functions of numbers: no records, no files, no text."""

LEVEL = 0.05  # of every test: a gap with a larger p-value is within the noise
