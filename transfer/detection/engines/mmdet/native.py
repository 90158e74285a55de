"""`custom_imports` of the native MMDetection files: importing it makes mmdet usable here and registers our parts.

`python -m transfer.detection.engines.mmdet.native tools/test.py CONFIG CHECKPOINT` runs a tool of MMDetection's that asks for
mmcv's operators before it reads a configuration, which mmcv-lite lacks.
"""

from __future__ import annotations

import runpy
import sys

from transfer.detection.engines import mmdet

mmdet.prepare()

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
