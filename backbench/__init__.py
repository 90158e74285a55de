"""The few things that several parts need. Imports nothing of the other parts."""
