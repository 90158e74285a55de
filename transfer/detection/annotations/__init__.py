"""Annotated images: read, checked, mended, written."""
