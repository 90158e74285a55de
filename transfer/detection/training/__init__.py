"""The training course that both engines share."""
