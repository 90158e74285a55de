"""A public board as files: entries (one JSON each), their checks, a static page, and a model card."""
