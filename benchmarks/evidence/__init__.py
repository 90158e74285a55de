"""Questions that results answer, each one command: studies of the MSBReg paper's claims, and which diagnostic predicts transfer."""
