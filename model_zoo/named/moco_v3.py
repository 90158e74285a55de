"""MoCo v3's checkpoint {"state_dict": ...} of a ViT: `module.base_encoder.`, beside `momentum_encoder` and `predictor`.

The base encoder transfers; its `head` is the projector (facebookresearch/moco-v3, main_lincls.py). Its ViT-S has 12 heads
where timm's and DINO's have 6 (vits.py).
"""

from model_zoo.named import Layout

LAYOUT = Layout(
    keys=("state_dict",),
    prefixes=("module.base_encoder.", "base_encoder."),
    drop=("*base_encoder.head.*", "*momentum_encoder.*", "*predictor.*"),
    heads={384: 12, 768: 12, 1024: 16, 1280: 16},
)
