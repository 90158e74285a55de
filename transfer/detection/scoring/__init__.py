"""Detections, scored and drawn."""
