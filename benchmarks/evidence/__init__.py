"""Questions that results answer: studies of the MSBReg paper's claims, and which diagnostic predicts transfer."""
