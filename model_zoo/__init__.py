"""Backbones: what defines one, how a file becomes one, how one is exported."""
