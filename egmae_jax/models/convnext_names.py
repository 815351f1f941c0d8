"""Names of a ConvNeXt's weights in timm and in the files of other libraries."""

from egmae_jax.models.layouts import CONV, DENSE, VECTOR, Layout
from egmae_jax.models.registry import OtherNames, Patterns


def patterns(mlp: Layout) -> Patterns:
    """Returns timm's names; `mlp` is the layout of the MLPs' kernels."""
    return (
        (r"stem/conv/kernel", r"stem.0.weight", CONV),
        (r"stem/conv/bias", r"stem.0.bias", VECTOR),
        (r"stem/norm/scale", r"stem.1.weight", VECTOR),
        (r"stem/norm/bias", r"stem.1.bias", VECTOR),
        (r"stages_(\d+)/downsample/norm/scale", r"stages.\1.downsample.0.weight", VECTOR),
        (r"stages_(\d+)/downsample/norm/bias", r"stages.\1.downsample.0.bias", VECTOR),
        (r"stages_(\d+)/downsample/conv/kernel", r"stages.\1.downsample.1.weight", CONV),
        (r"stages_(\d+)/downsample/conv/bias", r"stages.\1.downsample.1.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/gamma", r"stages.\1.blocks.\2.gamma", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/conv_dw/kernel", r"stages.\1.blocks.\2.conv_dw.weight", CONV),
        (r"stages_(\d+)/blocks_(\d+)/conv_dw/bias", r"stages.\1.blocks.\2.conv_dw.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/norm/scale", r"stages.\1.blocks.\2.norm.weight", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/norm/bias", r"stages.\1.blocks.\2.norm.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/(fc\d)/kernel", r"stages.\1.blocks.\2.mlp.\3.weight", mlp),
        (r"stages_(\d+)/blocks_(\d+)/(fc\d)/bias", r"stages.\1.blocks.\2.mlp.\3.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/grn_scale", r"stages.\1.blocks.\2.mlp.grn.weight", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/grn_bias", r"stages.\1.blocks.\2.mlp.grn.bias", VECTOR),
        (r"head/norm/scale", r"head.norm.weight", VECTOR),
        (r"head/norm/bias", r"head.norm.bias", VECTOR),
        (r"head/fc/kernel", r"head.fc.weight", DENSE),
        (r"head/fc/bias", r"head.fc.bias", VECTOR),
    )


def _block(theirs: str, timms: str) -> tuple[tuple[str, str], ...]:
    """Returns the patterns of a ConvNeXt block in Facebook's and Hugging Face's names.

    Args:
        theirs: regular expression of the block's prefix there, with two groups.
        timms: replacement with the block's prefix in timm.
    """
    return (
        (rf"{theirs}\.(?:gamma|layer_scale_parameter)", rf"{timms}.gamma"),
        (rf"{theirs}\.dwconv\.(weight|bias)", rf"{timms}.conv_dw.\3"),
        (rf"{theirs}\.(?:norm|layernorm)\.(weight|bias)", rf"{timms}.norm.\3"),
        (rf"{theirs}\.pwconv([12])\.(weight|bias)", rf"{timms}.mlp.fc\3.\4"),
        (rf"{theirs}\.grn\.(?:gamma|weight)", rf"{timms}.mlp.grn.weight"),
        (rf"{theirs}\.grn\.(?:beta|bias)", rf"{timms}.mlp.grn.bias"),
    )


_HF = r"(?:convnext(?:v2)?\.)?"  # prefix of a classifier's backbone; a backbone alone has none
# By library. The shapes differ only by axes of length 1.
OTHER_NAMES: OtherNames = {
    "Facebook's": (
        r"downsample_layers\.0\.0\.weight",
        (
            (r"downsample_layers\.0\.([01])\.(weight|bias)", r"stem.\1.\2"),
            (r"downsample_layers\.(\d+)\.([01])\.(weight|bias)", r"stages.\1.downsample.\2.\3"),
            *_block(r"stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
            (r"norm\.(weight|bias)", r"head.norm.\1"),
            (r"head\.(weight|bias)", r"head.fc.\1"),
            # DINOv3 has norms of the stages before the last, which classification does not use, and
            # the last one twice.
            (r"norms\.\d+\.(weight|bias)", ""),
        ),
    ),
    "Hugging Face's": (
        rf"{_HF}embeddings\.patch_embeddings\.weight",
        (
            (rf"{_HF}embeddings\.patch_embeddings\.(weight|bias)", r"stem.0.\1"),
            (rf"{_HF}embeddings\.layernorm\.(weight|bias)", r"stem.1.\1"),
            (
                rf"{_HF}encoder\.stages\.(\d+)\.downsampling_layer\.([01])\.(weight|bias)",
                r"stages.\1.downsample.\2.\3",
            ),
            *_block(rf"{_HF}encoder\.stages\.(\d+)\.layers\.(\d+)", r"stages.\1.blocks.\2"),
            (rf"{_HF}layernorm\.(weight|bias)", r"head.norm.\1"),
            (r"classifier\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
    "torchvision's": (
        r"features\.0\.0\.weight",
        (
            (r"features\.0\.([01])\.(weight|bias)", r"stem.\1.\2"),
            *(
                (rf"features\.{2 * i}\.([01])\.(weight|bias)", rf"stages.{i}.downsample.\1.\2")
                for i in (1, 2, 3)
            ),
            *(
                (rf"features\.{2 * i + 1}\.(\d+)\.{theirs}", rf"stages.{i}.blocks.\1.{timms}")
                for i in range(4)
                for theirs, timms in (
                    (r"layer_scale", "gamma"),
                    (r"block\.0\.(weight|bias)", r"conv_dw.\2"),
                    (r"block\.2\.(weight|bias)", r"norm.\2"),
                    (r"block\.3\.(weight|bias)", r"mlp.fc1.\2"),
                    (r"block\.5\.(weight|bias)", r"mlp.fc2.\2"),
                )
            ),
            (r"classifier\.0\.(weight|bias)", r"head.norm.\1"),
            (r"classifier\.2\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
}
