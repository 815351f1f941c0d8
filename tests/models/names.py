"""How other libraries spell timm's names."""

import re

# How other libraries' own sources spell timm's names, replaced in this order.
LIBRARIES = {
    "Facebook's": (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    ),
    "Hugging Face's": (
        (r"^stem\.0", "convnext.embeddings.patch_embeddings"),
        (r"^stem\.1", "convnext.embeddings.layernorm"),
        (r"^stages\.(\d)\.downsample", r"convnext.encoder.stages.\1.downsampling_layer"),
        (r"^stages\.(\d)\.blocks", r"convnext.encoder.stages.\1.layers"),
        (r"conv_dw", "dwconv"),
        (r"(layers\.\d+)\.norm", r"\1.layernorm"),
        (r"mlp\.fc", "pwconv"),
        (r"mlp\.grn", "grn"),
        (r"gamma$", "layer_scale_parameter"),
        (r"^head\.norm", "convnext.layernorm"),
        (r"^head\.fc", "classifier"),
    ),
}


def in_names_of(library, tensors):
    """timm's tensors as another library saves them."""
    renamed = {}
    for key, x in tensors.items():
        for pattern, replacement in LIBRARIES[library]:
            key = re.sub(pattern, replacement, key)
        if ".grn." in key:
            x = x.reshape(1, 1, 1, -1)
        renamed[key] = x[:, :, 0, 0] if "pwconv" in key and x.ndim == 4 else x
    assert len(renamed) == len(tensors)
    return renamed
