"""`custom_imports` of the native MMDetection files: importing it makes mmdet usable here and registers our parts."""

from __future__ import annotations

from transfer.detection.engines import mmdet

mmdet.prepare()
