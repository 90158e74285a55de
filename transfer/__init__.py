"""Transfer protocols: one module per task. Never imports `pretrain`."""
