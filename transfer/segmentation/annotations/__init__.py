"""Images with masks, in one form for every protocol and engine."""
