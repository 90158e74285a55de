"""Questions that results answer: studies of the MSBReg paper's claims, and which diagnostic predicts transfer."""

CELLS = ("imagenet_knn", "imagenet_linear")  # what a study measures of every run
UNTRAINED = "untrained"  # the arm every study has: the same architecture with the weights it starts from
