"""The default config: every field, its unit and the source of its value.

[S section] marks a value stated in a section of the paper (arXiv 2605.21970). [D] marks a value
decided here, because the paper does not state it. The configs of the data sets change a few fields.
"""

import re

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError


def get_config() -> ConfigDict:
    """The paper's recipe at its best setting, 1000 pre-training and 15 fine-tuning epochs."""
    config = ConfigDict()
    config.seed = 0  # round r uses seed + r, and so does the pre-training of split r

    config.data = data = ConfigDict()
    # busi, isic2018, isic2018_binary (malignant or benign), kvasir, kvasir_v1, hyperkvasir, covid,
    # skin_lesions, brain_tumor, brisc2025, phantoms;
    # image_folder: one folder per class; manifest: images listed in manifest.csv
    data.name = "image_folder"
    data.dir = ""  # folder of the images
    data.title = ""  # name of the data set in report, table and model card; '': data.name's own
    data.cache_dir = "~/.cache/egmae_jax"  # for prepared images and compiled programs
    data.on_error = "raise"  # unreadable images: 'raise' stops; 'skip' leaves them out and warns
    data.classes = ()  # names of the classes to use; () uses all
    # Regular expression that finds the patient in a file name, such as '(\d{8})_\d{3}' for
    # 00001543_006.jpg. Images with equal matches of its groups stay in one part.
    data.group_pattern = ""
    # 'rgb', or 'grey', which converts all images, so that colour cannot reveal the class
    data.color = "rgb"
    # [D] Stored values of black and white in files with more than 8 bits per value. 'type': minimum
    # and maximum of the data type (for 16 bits, the high byte is kept); 'declared': the range that
    # the file declares by PNG's sBIT or TIFF's SMinSampleValue and SMaxSampleValue, else as 'type';
    # 'dataset': minimum and maximum over all files of the data set, also used for new images. DICOM
    # files use their lookup table or window, else minimum and maximum of each image.
    data.intensity_range = "type"
    # Where the images are kept. 'resident': decoded, on the device; 'stream': decoded by Grain when
    # they are needed; 'auto': resident if the decoded images take at most resident_gigabytes (10^9
    # bytes; -1: 0.3 of the device's memory and of the host's free memory). Streamed images are kept
    # decoded in host memory up to host_gigabytes (-1: 0.3 of the free memory); the others are
    # decoded each time. Does not affect results.
    data.feeding = "auto"
    data.resident_gigabytes = -1.0
    data.host_gigabytes = -1.0
    data.image_size = 224  # [S 4.1] pixels
    # [D] Aspect ratio. 'shorter_side' resizes the shorter side, then crops, as torchvision does.
    # 'squash' and 'pad' (with black) make the image square first.
    data.resize = "shorter_side"
    # [D] Shorter side in pixels to which images are reduced before random cropping, if they are
    # more than a quarter larger. Twice the image size, so that a crop of the smallest scale (0.2)
    # is rarely enlarged.
    data.store_size = 448
    # [D] 'grouped' keeps near-duplicates, patients and lesions in one part; 'official' uses the
    # official parts of the data set, and splits off validation or test by groups if one of them is
    # missing; 'image_level' splits images independently, as most papers do, which leaks.
    data.protocol = "grouped"
    data.drop_leaks = True  # [D] 'official': drops training images of groups in other parts
    data.on_conflict = "keep"  # near-duplicates with different labels; 'drop' leaves both out
    data.deduplicate = False  # True keeps one image of those with identical pixels
    data.near_duplicate_threshold = 0.99  # [D] correlation of 32x32 grey thumbnails
    # [D] Shares of the images. The paper's BUSI accuracy, .9744, is 152 of 156: a fifth of 780.
    data.test_share = 0.2
    data.validation_share = 0.1
    data.split_seed = 0

    # [S 3.1] Classifiers whose probabilities are fused. 'mae': model.name, pre-trained by this run;
    # 'imagenet': imagenet.model from ImageNet weights; or the name of any other backbone, from its
    # ImageNet weights. Names: python -c 'from egmae_jax import models; print(models.names())'
    config.branches = ("imagenet", "mae")

    config.model = model = ConfigDict()
    model.name = "convnext_tiny"  # [S 3.2] backbone of both branches, unless imagenet.model is set
    model.dtype = "float32"  # compute dtype, 'float32' or 'bfloat16'; parameters are always float32
    # Recomputes wide activations in the backward pass instead of storing them: less memory, more
    # compute, the same results (benchmarks/RESULTS.md, "Memory"). ConvNeXt only.
    model.rematerialize = False
    # [D] Initialization without a checkpoint. 'timm' draws kernels with standard deviation 0.02,
    # 'fan_in' with 1 / sqrt(fan_in), with which narrow networks learn faster.
    model.kernel_init = "timm"
    model.layer_scale = 1e-6  # [D] initial layer scale of every block, as in ConvNeXt and timm

    config.entropy = entropy = ConfigDict()
    entropy.num_bins = 256  # [D] one bin per value: "the frequency of the i-th color value" (S 3.3)
    # [D] 'per_channel' averages the entropies of the three channels, 'joint' pools all channels in
    # one histogram, 'luma' uses the grey value.
    entropy.color = "per_channel"

    config.corruption = corruption = ConfigDict()
    # entropy_noise [S eq. 4]; for ablation: entropy_topk, entropy_sampled, random_mask,
    # uniform_noise (the same mean variance on all patches), shuffled_entropy (the variances
    # permuted among an image's patches) and contrast_noise (in proportion to a patch's variance)
    corruption.kind = "entropy_noise"
    corruption.patch_size = 16  # [D] pixels, as in MAE
    corruption.scale = 1.0  # [D] noise variance per nat, in normalised pixel units; 1 is eq. 4
    corruption.threshold = 0.0  # [D] a patch is masked where its noise variance exceeds this
    corruption.mask_ratio = 0.6  # [D] share of masked patches for the mask kinds, as in ConvNeXt V2

    config.decoder = decoder = ConfigDict()
    decoder.dim = 512  # [D] channels; "lightweight" (S 3.3), as in ConvNeXt V2
    decoder.depth = 1  # [D] number of ConvNeXt blocks

    config.pretrain = pretrain = ConfigDict()
    pretrain.splits = ("train",)  # [D] parts to train on without labels; adding 'test' leaks
    # Folders of images without labels to train on, too: every image below them, in any format.
    # With pretrain.splits=() they are the only ones. Identical copies are used once.
    pretrain.unlabelled = ()
    # [D] Leaves out unlabelled images that are near-duplicates of validation or test images, or of
    # their patients by data.group_pattern. False keeps them, which leaks.
    pretrain.drop_leaks = True
    # Weights to start from: a workdir with a finished pre-training, a .safetensors or .npz file of
    # such a pre-training or of a ConvNeXt in timm's names, or a name of timm, such as
    # 'convnextv2_tiny.fcmae' or 'convnext_tiny.dinov3_lvd1689m', from the Hugging Face hub. Empty:
    # random weights [S 3.3].
    pretrain.weights = ""
    # [S 5.1] 100, 500 or 1000; 0 takes pretrain.weights as they are
    pretrain.epochs = 1000
    # Interval in epochs at which a linear probe and the nearest neighbours classify validation
    # images by the encoder's frozen features of training images, and again after the last epoch; 0:
    # never. The labels do not affect the training.
    pretrain.probe_epochs = 0
    pretrain.batch_size = 16  # [S 4.3]
    pretrain.learning_rate = 5e-4  # [D] peak learning rate of AdamW
    pretrain.warmup_epochs = 5  # [D]
    pretrain.weight_decay = 0.05  # [D] as in MAE and ConvNeXt V2
    pretrain.betas = (0.9, 0.95)  # [D] as in MAE and ConvNeXt V2
    pretrain.crop_scale = (0.2, 1.0)  # [S 4.2] area of the random crop as a share of the image's
    pretrain.clip_norm = 0.0  # [D] as finetune.clip_norm
    pretrain.accumulation_steps = 1  # as finetune.accumulation_steps

    config.finetune = finetune = ConfigDict()
    finetune.epochs = 15  # [S 5.1] 15, 30 or 45
    finetune.batch_size = 16  # [S 4.3]
    # [S 4.2] Shorter side in pixels before the random crop: 236 for an image size of 224 and in
    # proportion for others, rounded, unless it is set.
    finetune.resize = (data.get_oneway_ref("image_size") * 236 + 112) // 224
    # [D] Random augmentations after the crop and the horizontal flip of S 4.2, in the given order,
    # such as ("rotate(15)", "color_jitter(0.2, 0.2, 0.2, 0.05)", "gaussian_blur(5, p=0.2)",
    # "mixup(0.2)"): docs/howto/augmentation.md lists all. `egmae augment` draws the result.
    finetune.augment = ()
    finetune.learning_rate = 1e-4  # [D] peak learning rate; AdamW and cosine are [S 4.3]
    finetune.warmup_epochs = 1  # [D]
    finetune.weight_decay = 0.05  # [D] as in ConvNeXt
    finetune.betas = (0.9, 0.999)  # [D] PyTorch's default
    finetune.layer_decay = 1.0  # [D] learning-rate factor per layer towards the stem; 1: off
    finetune.drop_path_rate = 0.1  # [D] as in ConvNeXt-Tiny; not used by SqueezeNet, DenseNet
    finetune.label_smoothing = 0.0  # [D] plain cross-entropy (S eq. 10)
    # [D] Share of the training images whose labels are used, by group, stratified by class and
    # drawn anew for every seed; a smaller share is a subset of a larger one. Pre-training still
    # sees all training images, and validation keeps all its labels.
    finetune.label_share = 1.0
    # 'cross_entropy' [S eq. 10]; for unequal classes, 'focal' multiplies it by (1 - p)^focal_gamma
    # (Lin et al. 2017), and 'logit_adjusted' trains on logits plus logit_adjustment_tau times the
    # logarithm of the class's share of the training images (Menon et al. 2021).
    finetune.loss = "cross_entropy"
    finetune.focal_gamma = 2.0  # [D] as in the source
    finetune.logit_adjustment_tau = 1.0  # [D] as in the source: consistent for the balanced error
    # [D] Weights of the classes in the loss, which is a weighted mean. 'none'; 'balanced': inverse
    # to the class's number of training images, as in scikit-learn; or a weight for every class,
    # such as 'benign=1,malignant=2.5,normal=1'.
    finetune.class_weights = "none"
    # [D] 'plain' draws every image once before any again; 'balanced' draws as many images with
    # replacement, all classes equally often (torch's WeightedRandomSampler).
    finetune.sampling = "plain"
    # [D] Largest global norm of a step's gradients; larger ones are scaled down to it. 0: off.
    finetune.clip_norm = 0.0
    # Number of equal parts of a batch, whose gradients are computed one after the other and
    # averaged: less memory. batch_size remains the number of images per optimizer step. The result
    # is that of the whole batch up to rounding, but drop path draws anew for each part, and batch
    # norms normalise each part by itself.
    finetune.accumulation_steps = 1
    # [D] Decay of the exponential moving average of the weights after each step, such as 0.99; 0:
    # off. With it, the average is validated too, selects the epoch and is what the run saves and
    # predicts with.
    finetune.ema_decay = 0.0
    # [D] Validation metric that selects the epoch: 'auc', 'accuracy', 'f1' (macro average),
    # 'balanced_accuracy' or 'loss' (cross-entropy). Of epochs with equal values, the one with the
    # lower loss is better.
    finetune.select = "auc"
    # [D] Number of epochs without a better value of finetune.select after which fine-tuning ends
    # early; 0: all epochs run. The best epoch is kept in any case.
    finetune.patience = 0
    # Layers to train. 'all'; 'head': only the classifier; 'low_entropy': the head and those
    # convolutions whose outputs have the lowest Shannon entropy (entropy-based layer selection),
    # until trainable_share of all parameters train; 'random': the head and random convolutions, to
    # the same share. Frozen layers have no gradient and no optimizer state, and their batch norms
    # keep their running statistics.
    finetune.trainable = "all"
    finetune.trainable_share = 0.5  # [D] the source keeps about .90 (ResNet-18) and .82 (ResNet-34)
    # Standard deviation of Gaussian noise on the input in training and evaluation, as a share of
    # the pixel range (ablation of the layer selection: 0.1 to 0.4).
    finetune.input_noise = 0.0

    config.imagenet = imagenet = ConfigDict()
    # 'default': timm's ImageNet-1k checkpoint of the model, from the Hugging Face hub or its local
    # cache; a hub id; a .safetensors or .npz file; a folder with <model>.safetensors or .npz for
    # several branches, where a missing file means the default; or 'none': random weights, which all
    # results then mention.
    imagenet.weights = "default"
    imagenet.model = ""  # [S 3.1] any backbone; empty: the same as model.name

    config.fusion = fusion = ConfigDict()
    # 'mean' of the branches' probabilities [S eq. 11]; 'weighted' mean or 'stacked' (multinomial
    # logistic regression), which are the paper's future work, fitted on validation images only.
    fusion.kind = "mean"

    config.rounds = rounds = ConfigDict()
    # [D] The paper runs "5 rounds" and mentions folds. 'seeds': rounds.count seeds on one split;
    # 'folds': rounds.count grouped folds, each pre-trained on its own train part.
    rounds.kind = "seeds"
    rounds.count = 5  # [S 4.3]

    config.evaluation = evaluation = ConfigDict()
    # [S 4.2] Shorter side in pixels (with 'squash' and 'pad', of the square) before the centre crop
    # to data.image_size, which is the default. With 236, as finetune.resize, objects have the same
    # size in testing as in training.
    evaluation.resize = data.get_oneway_ref("image_size")
    # [D] Test-time augmentation: averages the probabilities over views of an image, everywhere that
    # images are predicted. Some of 'horizontal_flip', 'vertical_flip' and 'five_crop' (the centre
    # and the corners of the central square of side evaluation.resize); all three give 20 views.
    evaluation.tta = ()
    evaluation.batch_size = 64  # images per step; does not affect results
    evaluation.bootstrap_resamples = 1000  # for the 95 % confidence intervals
    evaluation.report = True  # writes report.html at the end, for which Grad-CAM is compiled

    # Number of devices on all hosts along each axis of the mesh; affects results only by the order
    # of sums. Batches are sharded along 'data'; -1 uses as many devices as pretrain.batch_size and
    # finetune.batch_size, each over its accumulation_steps, can be divided among. Along 'fsdp',
    # batches are sharded too, and so are large parameters and their optimizer state: less memory,
    # more communication.
    config.mesh = mesh = ConfigDict()
    mesh.data = -1
    mesh.fsdp = 1

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.save_seconds = 60.0  # shortest time between two; a stage's end is always saved

    # Event files in tensorboard/ of the workdir; they do not affect results.
    config.tensorboard = tensorboard = ConfigDict()
    tensorboard.events = True  # writes the rows of metrics.jsonl for TensorBoard
    # Interval in pre-training epochs at which some validation images are drawn, corrupted and
    # reconstructed, and again after the last epoch; 0: never. A drawing takes about a second.
    tensorboard.panel_epochs = 100

    # Largest number of consecutive steps with a loss or gradient that is not finite to skip before
    # the run stops. nonfinite/ of the workdir and results.json list every such step.
    config.nonfinite = nonfinite = ConfigDict()
    nonfinite.max_skipped = 0

    return config.lock()


def set_epochs(config: ConfigDict, preset: str) -> None:
    """Applies a preset such as '1000/15': pre-training / fine-tuning epochs (paper figure 2).

    Raises:
        ConfigError: the preset has another form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", preset)
    if not match:
        raise ConfigError(
            f"There is no preset {preset!r}. Presets: cpu, <pre-training epochs>/<fine-tuning "
            "epochs> such as 1000/15, or both as cpu,20/15."
        )
    config.pretrain.epochs, config.finetune.epochs = int(match[1]), int(match[2])


def set_cpu(config: ConfigDict) -> None:
    """Applies the preset for two CPU cores: ConvNeXt-Atto at 96 pixels, two seeds.

    With few steps, a network must learn quickly: it needs higher learning rates, larger initial
    kernels and a larger layer scale than in a long run or with pre-trained weights.
    """
    config.model.name = "convnext_atto"
    config.model.kernel_init = "fan_in"
    config.model.layer_scale = 0.1
    config.data.image_size = 96
    config.data.store_size = 128
    config.decoder.dim = 128
    config.pretrain.epochs = 20
    config.pretrain.warmup_epochs = 2
    config.pretrain.learning_rate = 2e-3
    config.finetune.epochs = 15
    config.finetune.learning_rate = 1e-3
    config.rounds.count = 2


def set_companion(config: ConfigDict, model: str) -> None:
    """Replaces the paper's two branches by one backbone, from its ImageNet weights."""
    config.branches = ("imagenet",)
    config.imagenet.model = model
    config.finetune.drop_path_rate = 0.0  # neither companion paper mentions drop path


def apply_preset(config: ConfigDict, preset: str | None) -> ConfigDict:
    """Applies the preset after the colon of `--config=configs/busi.py:cpu`, and returns the config.

    Args:
        config: config to change in place.
        preset: 'cpu', epochs such as '1000/15', or both as 'cpu,20/15'; None and '' change nothing.

    Raises:
        ConfigError: the preset has another form.
    """
    words = preset.split(",") if preset else []
    if words[:1] == ["cpu"]:
        set_cpu(config)
        words = words[1:]
    for word in words:
        set_epochs(config, word)
    return config
