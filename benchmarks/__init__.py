"""Runs every transfer protocol, keeps one honest record per number, renders the tables."""
