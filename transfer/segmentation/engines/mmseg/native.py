"""`custom_imports` of the native MMSegmentation configurations. Importing it makes mmseg work here and registers our parts.

`python -m transfer.segmentation.engines.mmseg.native tools/test.py CONFIG CHECKPOINT` runs an MMSegmentation tool that
imports mmcv's operators, missing in mmcv-lite, before it reads a configuration.
"""

from __future__ import annotations

import runpy
import sys

from transfer.segmentation.engines import mmseg

mmseg.prepare()

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
