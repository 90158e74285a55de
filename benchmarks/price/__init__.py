"""`backbench run --estimate`: wall hours, GPU-hours, disk and memory of each cell, on this machine or a named one."""
