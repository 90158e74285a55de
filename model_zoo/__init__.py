"""Backbones: their definition, how a file becomes one, and how one is exported."""
