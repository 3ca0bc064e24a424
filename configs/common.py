"""Every key of every config, with its default and its meaning.

A config file starts from `get_config()` and changes what it is about; a key that is not
here does not exist, and a mistyped one is refused with a suggestion.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the defaults: AnchorNet on ImageNet, 2022, Sec. 4.1."""
    config = ml_collections.ConfigDict()

    config.program = "train"  # a key of pipeline.PROGRAMS
    config.seed = 0  # decides initial parameters, order and augmentation

    # The data, arguments of data.prepare.
    config.data = ml_collections.ConfigDict()
    config.data.name = "imagenet2012"  # any TFDS name, or folder:DIRECTORY
    config.data.data_dir = ""  # of TFDS; its default where empty
    config.data.manual_dir = ""  # archives to make it from, once; see data.prepare
    config.data.image_size = 224  # px
    config.data.augment = "random_resized_crop"  # | none
    config.data.flip = True  # mirror half of the training images
    config.data.resize = 256  # px, short side before the centre crop; 0: crop only
    config.data.bad_images = "error"  # | skip, what cannot be decoded
    config.train_split = "train[25000:]"  # TFDS splits, slices included
    config.calibration_split = "train[:25000]"  # chooses checkpoints and thresholds
    config.test_split = "validation"  # seen by the final evaluation alone

    # The network and what it sees.
    config.model = "anchornet"  # a key of models.MODELS; of predict: an export
    config.dtype = "float32"  # of the computation; bfloat16 on GPU and TPU
    config.init_from = ""  # directory of a network to start from
    config.localizer = ""  # directory of the AnchorNet that selects the patches
    config.view = ml_collections.ConfigDict()  # arguments of views.make
    config.view.name = "full"  # | resized | patches | random
    config.view.k = 4  # patches per image
    config.view.iou_threshold = 0.3  # 2022, Sec. 4.1
    config.view.preset = ""  # of 2020, instead of both: a key of patches.PRESETS
    config.view.branch = 0  # of 2020: patches of 63, 95 or 111 px; 0: of the chosen one

    # Training; batch_size counts images on all devices together.
    config.batch_size = 256  # a multiple of the devices
    config.accumulate = 1  # parts a device takes its images in, to fit small memory
    config.epochs = 100.0  # passes over train_split; fractions are allowed
    config.optimizer = ml_collections.ConfigDict()  # arguments of create_optimizer
    config.optimizer.learning_rate = 0.1  # the highest
    config.optimizer.schedule = "step"  # | cosine
    config.optimizer.warmup = 0.0  # share of the run
    config.optimizer.boundaries = (0.3, 0.6, 0.9)  # shares of the run
    config.optimizer.momentum = 0.9  # of SGD
    config.optimizer.nesterov = True  # as the authors in Stage I, not in Stage II
    config.optimizer.weight_decay = 1e-4  # on every parameter
    config.save_every_epochs = 1.0  # evaluate on the calibration split, checkpoint
    config.log_every_steps = 100  # loss and accuracy of the batches since

    # The evaluation of the whole method: directories of trained networks.
    config.networks = ml_collections.ConfigDict()
    config.networks.anchornet = ""  # selects the patches
    config.networks.full_image = ""  # the reference point; may stay empty
    config.networks.glance = ""  # sees the resized image
    config.networks.patches = ""  # sees the patches
    config.networks.b63 = ""  # 2020: sees patches of 63 px as they are
    config.networks.b95 = ""  # and of 95 px
    config.networks.b111 = ""  # and of 111 px
    config.inputs = 5  # T: the glance and T - 1 patches
    config.fuse = "logits"  # what is summed over inputs: logits | probabilities
    config.rule = "thresholds"  # who leaves when: geometric | thresholds | value
    config.budgets = 20  # points of the budgeted curve
    config.timing = ml_collections.ConfigDict()  # of the engine, milliseconds per image
    config.timing.images = 4096  # test images to measure with; 0: nothing is measured
    config.timing.batch_size = 128  # images of a launch, on each device

    config.analysed_images = 0  # first test images, for the analyses of 2020; 0: all

    # The export: of `networks`, with the rules that an evaluation of them fitted.
    config.evaluation = ""  # its directory; may stay empty

    # A conversion of PyTorch weights to the network `model`.
    config.source = ""  # the file: .pth, .pth.tar, .safetensors
    config.num_classes = 0  # 0: as many as the file's classifier has
    config.fresh_classifier = False  # start a new one where the number differs

    # The prediction for images of one's own, by an export.
    config.images = ""  # a pattern of files, such as photos/*.jpg
    config.budget = 0.0  # mean multiply-adds per image; 0: the most that was fitted
    config.pictures = True  # draw one of each image: where it looked, what it said

    # A pipeline: name -> config of each stage, and the names as they run.
    config.stages = ml_collections.ConfigDict()
    config.order = ()  # each stage once
    return config


def choose(argument: str, **allowed) -> list[str]:
    """Split what follows the colon in `--config=FILE:choice,choice`.

    Args:
      argument: one choice of each kind, with commas between.
      **allowed: kind -> what can be chosen.

    Raises:
      ValueError: for an unknown choice, or not one of each kind.
    """
    chosen = argument.split(",")
    if len(chosen) != len(allowed) or any(
        choice not in known for choice, known in zip(chosen, allowed.values())
    ):
        known = "; ".join(f"{kind}: {', '.join(c)}" for kind, c in allowed.items())
        raise ValueError(
            f"`argument` is {argument!r}; give {','.join(allowed).upper()} after the "
            f"file and a colon, with {known}"
        )
    return chosen


def pipeline(
    base, trainings, programs=("evaluate", "export")
) -> ml_collections.ConfigDict:
    """Return a pipeline: the data, all trainings, the programs that use the networks.

    The stages share the pipeline's data, splits and seed: changed there, also on the
    command line, they change in all stages.

    Args:
      base: what is the same in all stages.
      trainings: stage -> (network, view, batch size, epochs, learning rate); the stages
        are `anchornet`, `full_image`, and those that start from it: `glance`, `patches`
        and, of 2020, `b63`, `b95` and `b111`. Cosine schedule after a warm-up of 5 %.
      programs: of the last stages, which have their names.
    """
    whole = base.copy_and_resolve_references()
    whole.program = "pipeline"
    whole.stages.data = _stage(whole, "prepare")
    last = {program: _stage(whole, program) for program in programs}
    for name, (model, view, batch_size, epochs, rate) in trainings.items():
        stage = _stage(whole, "train")
        stage.model, stage.view.name = model, view
        stage.batch_size, stage.epochs = batch_size, epochs
        stage.optimizer.learning_rate = rate
        stage.optimizer.schedule, stage.optimizer.warmup = "cosine", 0.05
        if name not in ("anchornet", "full_image"):
            stage.init_from = "full_image/network"
        if view == "patches":
            stage.localizer = "anchornet/network"
        whole.stages[name] = stage
        for user in last.values():
            user.networks[name] = f"{name}/network"
    for program, stage in last.items():
        whole.stages[program] = stage
    whole.stages.export.evaluation = "evaluate"
    whole.order = ("data", *trainings, *programs)
    return whole


def _stage(whole, program):
    stage = whole.copy_and_resolve_references()
    del stage.stages, stage.order
    stage.program = program
    stage.data = whole.data
    for key in ("seed", "train_split", "calibration_split", "test_split"):
        stage[key] = whole.get_ref(key)
    return stage
