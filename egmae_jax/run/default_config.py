"""Every field of a run, its unit and where its value comes from.

[S section] is stated by the paper (arXiv 2605.21970); [D] is decided here because the paper is
silent, with the reason. The configs of the data sets change a few of these.
"""

import re

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError


def get_config() -> ConfigDict:
    """The recipe of the paper at its best setting, 1000 pre-training and 15 fine-tuning epochs."""
    config = ConfigDict()
    config.seed = 0  # round r uses seed + r; pre-training uses seed

    config.data = data = ConfigDict()
    # busi, isic2018, isic2018_binary (malignant or benign), kvasir, kvasir_v1, covid, skin_lesions,
    # brain_tumor, brisc2025, phantoms;
    # image_folder: one folder a class; manifest: listed in manifest.csv
    data.name = "image_folder"
    data.dir = ""  # the folder that holds the images
    data.cache_dir = "~/.cache/egmae_jax"  # records made from them, and compiled programs
    data.on_error = "raise"  # unreadable images: 'raise' stops, 'skip' leaves them out and says so
    data.classes = ()  # names of the classes to keep; () keeps all
    # A regular expression that finds the patient in a file's name, such as '(\d{8})_\d{3}' for
    # 00001543_006.jpg: images in which its groups match the same stay together.
    data.group_pattern = ""
    # 'grey' makes grey of all images, so that grey or coloured files do not tell the class; 'rgb'
    data.color = "rgb"
    # [D] Which values become black and white in files of more than 8 bits a value. 'type': the
    # least and largest that their type can hold (of 16 bits the high byte is kept); 'declared':
    # those that the file declares, by PNG's sBIT or TIFF's SMinSampleValue and SMaxSampleValue,
    # else as 'type'; 'dataset': the least and largest in all files of the set, which the run keeps
    # for new images. DICOM tells by itself: its table or window, else each image's own extremes.
    data.intensity_range = "type"
    # Where images wait for their step. 'resident': decoded, on the device; 'stream': decoded by
    # Grain as they are needed; 'auto': resident where the decoded set takes no more than so many
    # gigabytes (10^9 bytes); -1 is .3 of the device's memory, and of the host's that is free. Of a
    # streamed set, decoded images are kept in the host's memory up to host_gigabytes, of which -1
    # is .3 of what is free, and the others are decoded each time. Changes no number.
    data.feeding = "auto"
    data.resident_gigabytes = -1.0
    data.host_gigabytes = -1.0
    data.image_size = 224  # pixels, [S 4.1]
    # [D] Aspect. 'shorter_side': resize it, then crop, as torchvision does. 'squash', 'pad' (black)
    # make the image square first.
    data.resize = "shorter_side"
    # [D] Pixels. Random crops are taken from the image, reduced to this shorter side if it is more
    # than a quarter larger: twice the image size, so that a crop of the smallest scale (0.2) is
    # hardly ever enlarged.
    data.store_size = 448
    # [D] 'grouped' keeps near-duplicates, patients and lesions together; 'official' takes the data
    # set's own parts, and by groups one that it lacks, but not both; 'image_level' splits image by
    # image, as most papers do, and leaks.
    data.protocol = "grouped"
    data.drop_leaks = True  # [D] 'official': no training image of a group that is tested on
    data.on_conflict = "keep"  # near-duplicates with different labels: 'drop' leaves both out
    data.deduplicate = False  # True keeps one of images of identical pixels
    data.near_duplicate_threshold = 0.99  # [D] correlation of 32x32 grey thumbnails
    # [D] Shares of the images. The paper's BUSI accuracy, .9744, is 152 of 156: a fifth of 780.
    data.test_share = 0.2
    data.validation_share = 0.1
    data.split_seed = 0

    # The classifiers, whose probabilities are fused [S 3.1]. 'mae': model.name, pre-trained here;
    # 'imagenet': imagenet.model from its ImageNet weights; or the name of any other backbone, from
    # its own. Names: python -c 'from egmae_jax import models; print(models.names())'
    config.branches = ("imagenet", "mae")

    config.model = model = ConfigDict()
    model.name = "convnext_tiny"  # [S 3.2], of the branch 'mae' and of its twin
    model.dtype = "float32"  # of compute: 'float32' or 'bfloat16'; parameters are float32 always
    # Computes wide activations again for the gradients instead of keeping them: less memory, more
    # multiplications, the same results (what it costs: benchmarks/RESULTS.md, "Memory"). ConvNeXts
    # only.
    model.rematerialize = False
    # [D] Where parameters start that no checkpoint gives. 'timm' draws kernels with standard
    # deviation .02; 'fan_in' with 1 / sqrt(fan_in), which narrow networks learn faster from.
    model.kernel_init = "timm"
    model.layer_scale = 1e-6  # [D] of every block at the start; ConvNeXt's and timm's

    config.entropy = entropy = ConfigDict()
    entropy.num_bins = 256  # [D] one a value: "the frequency of the i-th color value" (S 3.3)
    # [D] 'per_channel' averages three histograms' entropies, 'joint' pools the channels' values,
    # 'luma' takes the grey value.
    entropy.color = "per_channel"

    config.corruption = corruption = ConfigDict()
    # entropy_noise [S eq. 4]; for ablation: entropy_topk, entropy_sampled, random_mask and
    # uniform_noise
    corruption.kind = "entropy_noise"
    corruption.patch_size = 16  # [D] pixels, MAE's
    corruption.scale = 1.0  # [D] noise variance per nat of entropy, in normalised units; 1 is eq. 4
    corruption.threshold = 0.0  # [D] a patch is masked where its noise variance exceeds this
    corruption.mask_ratio = 0.6  # [D] masked share for the mask kinds; ConvNeXt V2's

    config.decoder = decoder = ConfigDict()
    decoder.dim = 512  # [D] channels; "lightweight" (S 3.3), so ConvNeXt V2's decoder
    decoder.depth = 1  # [D] ConvNeXt blocks

    config.pretrain = pretrain = ConfigDict()
    pretrain.splits = ("train",)  # [D] images seen without labels; 'test' here taints the test
    pretrain.epochs = 1000  # [S 5.1] 100, 500 or 1000
    pretrain.batch_size = 16  # [S 4.3]
    # [D] AdamW at the peak.
    pretrain.learning_rate = 5e-4
    pretrain.warmup_epochs = 5  # [D]
    pretrain.weight_decay = 0.05  # [D] MAE's, ConvNeXt V2's
    pretrain.betas = (0.9, 0.95)  # [D] likewise
    pretrain.crop_scale = (0.2, 1.0)  # [S 4.2] share of the image's area

    config.finetune = finetune = ConfigDict()
    finetune.epochs = 15  # [S 5.1] 15, 30 or 45
    finetune.batch_size = 16  # [S 4.3]
    finetune.resize = 236  # [S 4.2] pixels of the shorter side, before the random crop
    finetune.learning_rate = 1e-4  # [D] AdamW at the peak (optimizer and cosine: S 4.3)
    finetune.warmup_epochs = 1  # [D]
    finetune.weight_decay = 0.05  # [D] ConvNeXt's
    finetune.betas = (0.9, 0.999)  # [D] PyTorch's default
    finetune.layer_decay = 1.0  # [D] learning-rate factor a layer towards the stem; 1 is off
    finetune.drop_path_rate = 0.1  # [D] ConvNeXt-Tiny's; SqueezeNet has no paths to drop
    finetune.label_smoothing = 0.0  # [D] plain cross-entropy (S eq. 10)
    # Which layers train: 'all'; 'head', the classifier alone; 'low_entropy', also the convolutions
    # whose outputs have the lowest Shannon entropy (layer selection, METHOD.md 4), lowest first,
    # until trainable_share of all parameters train; 'random', drawn instead of ranked. What does
    # not train has no gradient and no optimizer state, and its batch norms stay as they were.
    finetune.trainable = "all"
    finetune.trainable_share = 0.5  # [D] the source keeps about .90 (ResNet-18) and .82 (ResNet-34)
    # Gaussian noise on what the classifier sees, in training and in testing: its standard deviation
    # as a share of the pixels' range (ablation of the layer selection: .1 to .4).
    finetune.input_noise = 0.0

    config.imagenet = imagenet = ConfigDict()
    # 'default': timm's ImageNet-1k checkpoint of the model, from the Hugging Face hub or its local
    # cache; a hub id; a .safetensors or .npz file; a folder that holds <model>.safetensors or .npz
    # for several branches, of which the others take the default; or 'none': random weights, which
    # every result then says.
    imagenet.weights = "default"
    imagenet.model = ""  # any backbone; empty is model.name, the twin [S 3.1]

    config.fusion = fusion = ConfigDict()
    # 'mean' of the branches' probabilities [S eq. 11]; 'weighted' mean or 'stacked' (multinomial
    # logistic regression), the paper's future work, both fitted on validation images only.
    fusion.kind = "mean"

    config.rounds = rounds = ConfigDict()
    # [D] The paper runs "5 rounds" and speaks of folds. 'seeds': that many seeds on one split;
    # 'folds': that many grouped folds, each pre-trained on its own train part.
    rounds.kind = "seeds"
    rounds.count = 5  # [S 4.3]

    config.evaluation = evaluation = ConfigDict()
    # Pixels of the shorter side (with 'squash' and 'pad', of the square) before the centre crop of
    # data.image_size; if not given, that: nothing is cut off but what makes the image a square
    # [S 4.2]. finetune.resize, 236, shows objects in testing as large as in training.
    evaluation.resize = data.get_oneway_ref("image_size")
    evaluation.batch_size = 64  # images a step; changes no result
    evaluation.bootstrap_resamples = 1000  # for the 95 % intervals
    evaluation.report = True  # report.html at the end, which compiles Grad-CAM

    # Devices, of all hosts together; changes no number but for the order of sums. Along 'data'
    # batches are split: -1 takes as many devices as there are and pretrain.batch_size and
    # finetune.batch_size can be divided among. Along 'fsdp' batches are split, too, and so are
    # large parameters and their optimizer state: less memory, more communication.
    config.mesh = mesh = ConfigDict()
    mesh.data = -1
    mesh.fsdp = 1

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.save_seconds = 60.0  # least time between two; the end of a stage is always saved

    # tensorboard/ of the workdir; changes no number.
    config.tensorboard = tensorboard = ConfigDict()
    tensorboard.events = True  # everything in metrics.jsonl, for TensorBoard
    # Some validation images, corrupted and reconstructed, are drawn after so many epochs of
    # pre-training, and after the last; 0 draws none. A drawing takes about a second.
    tensorboard.panel_epochs = 100

    # Steps whose loss or gradient is not finite: so many in a row are left out before the run
    # stops. The workdir's nonfinite/ and results.json tell each.
    config.nonfinite = nonfinite = ConfigDict()
    nonfinite.max_skipped = 0

    return config.lock()


def set_epochs(config: ConfigDict, preset: str) -> None:
    """Applies a preset such as '1000/15': pre-training / fine-tuning epochs (paper figure 2).

    Raises:
        ConfigError: the preset does not read so.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", preset)
    if not match:
        raise ConfigError(
            f"There is no preset {preset!r}. Presets: cpu, or <pre-training epochs>/<fine-tuning "
            "epochs> such as 1000/15."
        )
    config.pretrain.epochs, config.finetune.epochs = int(match[1]), int(match[2])


def set_cpu(config: ConfigDict) -> None:
    """A recipe for two CPU cores: ConvNeXt-Atto at 96 pixels, two seeds.

    So few steps need parameters that learn from the start: higher learning rates, wider kernels
    and a larger layer scale than a long run or pre-trained weights.
    """
    config.model.name = "convnext_atto"
    config.model.kernel_init = "fan_in"
    config.model.layer_scale = 0.1
    config.data.image_size = 96
    config.data.store_size = 128
    config.finetune.resize = 101  # 236 / 224 of the image size
    config.decoder.dim = 128
    config.pretrain.epochs = 20
    config.pretrain.warmup_epochs = 2
    config.pretrain.learning_rate = 2e-3
    config.finetune.epochs = 15
    config.finetune.learning_rate = 1e-3
    config.rounds.count = 2


def set_companion(config: ConfigDict, model: str) -> None:
    """One backbone from its ImageNet weights instead of the paper's two branches."""
    config.branches = ("imagenet",)
    config.imagenet.model = model
    config.finetune.drop_path_rate = 0.0  # neither source speaks of it


def apply_preset(config: ConfigDict, preset: str | None) -> ConfigDict:
    """Applies what stands behind the colon of `--config=configs/busi.py:cpu`."""
    if preset == "cpu":
        set_cpu(config)
    elif preset:
        set_epochs(config, preset)
    return config
