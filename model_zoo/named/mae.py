"""MAE's checkpoint {"model": ...} with its decoder: the encoder's ViT; `mask_token` and the decoder are dropped.

facebookresearch/mae (models_vit.py, main_linprobe.py) takes the class token of the normed output, as timm's `token` does.
"""

from model_zoo.named import Layout

LAYOUT = Layout(
    keys=("model", ""),
    prefixes=("", "module."),
    drop=("mask_token", "decoder_*", "module.mask_token", "module.decoder_*"),
    heads={768: 12, 1024: 16, 1280: 16},
    marks=("*decoder_embed.weight",),
)
