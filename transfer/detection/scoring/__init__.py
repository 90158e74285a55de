"""Score and draw detections."""
