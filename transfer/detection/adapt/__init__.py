"""Adapt libraries to current versions, one file each: what it does, for which versions, when to remove it."""
