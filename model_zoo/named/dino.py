"""DINO's run checkpoint {"student", "teacher", ...} of a ViT: the teacher's `backbone.`.

facebookresearch/dino evaluates the teacher (eval_linear.py, --checkpoint_key teacher); its ViT is timm's, with timm's numbers
of heads (vision_transformer.py). The published backbone files hold that network alone.
"""

from model_zoo.named import Layout

LAYOUT = Layout(
    keys=("teacher",),
    prefixes=("backbone.", "module.backbone."),
    drop=("head.*", "module.head.*"),
    passed_over=("student",),
    heads={192: 3, 384: 6, 768: 12},
)
