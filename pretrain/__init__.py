"""Pretraining: MSBReg and its relatives. Writes a `model.pth` that `model_zoo.load` reads; never imports `transfer`."""
