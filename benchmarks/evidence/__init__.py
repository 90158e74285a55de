"""Questions that a folder of results answers, each one command: `predictors` (which diagnostic predicts transfer)."""
