"""Pickles, read without running them: opcodes, objects, the operations that give values, and the settled result."""
