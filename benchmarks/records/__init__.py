"""Records: contents, places, reading and provenance."""
