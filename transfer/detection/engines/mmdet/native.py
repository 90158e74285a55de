"""`custom_imports` of the native MMDetection configurations. Importing it makes mmdet work here and registers our parts.

`python -m transfer.detection.engines.mmdet.native tools/test.py CONFIG CHECKPOINT` runs an MMDetection tool that imports
mmcv's operators, missing in mmcv-lite, before it reads a configuration.
"""

from __future__ import annotations

import runpy
import sys

from transfer.detection.engines import mmdet

mmdet.prepare()

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
