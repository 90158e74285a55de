"""Read, check, repair and write annotated images."""
