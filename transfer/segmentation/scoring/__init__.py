"""Scores and pictures of predicted classes per pixel."""
