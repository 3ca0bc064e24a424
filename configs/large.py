"""Large images: a glance, AnchorNet coarse to fine, and patches at full resolution.

    python main.py --config=configs/large.py:plates --workdir=runs/large
    python main.py --config=configs/large.py:mixed --workdir=runs/large_mixed
    python main.py --config=configs/large.py:megapixel_small --workdir=runs/megapixel_small
    python main.py --config=configs/large.py:megapixel --workdir=runs/megapixel

The method is `large` (methods/large.py): images stay in host memory, and every view of them
has 224 pixels or a patch's 95. Stages, in order: `localizer`, `full_image` (the reference,
at full resolution), `glance` and `patch` as in configs/anchornet.py, `evaluate` and
`export`. AnchorNet learns on shrunk images, at about the scale at which it first looks;
the glance on what 224 pixels show of the whole image; the patch network on patches of full
resolution. `evaluate` compares with the full-resolution network and with random patches;
`summary.json` holds accuracies, milliseconds, and the device memory of the largest launch.
`predict` and the page take photographs as they are by such an export.

`plates` starts from the networks of the demo, which configs/anchornet.py has left in
`runs/demo`; its patch network is taken as it is. `mixed` trains nothing: it takes the
networks of `plates`, from `runs/large`, and evaluates and exports them on images of any
size as they are, without the full-resolution network, which needs one size.

Data: `plates/large_1024`, one digit on one of ten plates, 1024 x 1024 pixels, and
`plates/large`, sides of 512 to 4096 pixels and more plates, draw themselves.
`megapixel_mnist` (data/megapixel.py) does too, with the digits of TFDS's `mnist` where that
is in `data_dir`, else with drawn ones, which are another task than the published one.
`megapixel` is that of attention sampling, 1500 x 1500 pixels and 5,000 training images, for
one GPU; `megapixel_small` its easy variant, 500 x 500 pixels without noise, for two cores.

Expected on megapixel MNIST, majority of five digits at 1500 x 1500 pixels: attention
sampling, 10 patches of 50 pixels, 500 epochs: an error of about .20 (read from a figure of
Katharopoulos and Fleuret, 2019); iterative patch selection, 150 epochs, with another noise:
99.1 % (Bergner and others, 2023). Both are points in the figures of configs/compare.py.
Tried of `megapixel_small`, with drawn digits: the AnchorNet of 2 epochs is right on 85.5 % of
200 calibration images, 28 % without `settle_batches`; the rest was not run.

Time: not measured as a whole; meant for at most an hour on two cores that do nothing else,
`megapixel` for some hours on one GPU.
"""

from configs import anchornet, common

STAGES = ("localizer", "full_image", "glance", "patch")
DATA = {
    "plates": {
        "name": "plates/large_1024",
        "image_size": 1024,  # px
        "network": "resnet10",
        "start": "runs/demo",  # a run with networks of the same stages
        "given": ("patch",),  # stages whose networks are taken from there as they are
        "method": {"inputs": 5, "views": 4, "zooms": 1},
        # Stages whose images are shrunk, to so many px.
        "shrunk": {"localizer": 512, "glance": 224},
        "lengths": {  # stage: (batch size, epochs, learning rate), cosine
            "localizer": (32, 8.0, 0.05),
            "full_image": (8, 1.0, 0.01),
            "glance": (32, 4.0, 0.02),
        },
        "evaluation": 8,  # images of a batch
        "timing": (48, 4),  # images, of a launch
    },
    "mixed": {
        "name": "plates/large",
        "image_size": 0,  # as they are
        "network": "resnet10",
        "start": "runs/large",
        "given": ("localizer", "glance", "patch"),
        "method": {"inputs": 5, "views": 4, "zooms": 2},
        "evaluation": 4,
        "timing": (16, 2),
    },
    "megapixel": {
        "name": "megapixel_mnist/ats",
        "image_size": 1500,
        "network": "resnet18",
        # As many patches as attention sampling takes.
        "method": {"inputs": 11, "views": 16, "zooms": 1},
        "shrunk": {"localizer": 750, "glance": 224},
        "lengths": {
            "localizer": (32, 150.0, 0.1),
            "full_image": (16, 50.0, 0.05),
            "glance": (32, 20.0, 0.01),
            "patch": (16, 20.0, 0.01),
        },
        "settle": 60,  # batches; most of an image is black
        "evaluation": 16,
        "timing": (256, 16),
    },
    "megapixel_small": {
        "name": "megapixel_mnist/ats_easy",
        "image_size": 500,
        "network": "resnet10",
        "method": {"inputs": 6, "views": 4, "zooms": 1},
        "shrunk": {"localizer": 368, "glance": 224},
        "lengths": {
            "localizer": (32, 5.0, 0.1),
            "full_image": (32, 2.0, 0.05),
            "glance": (32, 2.0, 0.02),
            "patch": (32, 2.0, 0.05),
        },
        "settle": 60,  # batches; most of an image is black
        "evaluation": 16,
        "timing": (48, 4),
    },
}


def method(about: dict, *roles: str, localizer: str = "network"):
    """Return the method of networks that the stages of the same names have trained."""
    return common.method(
        "large",
        {role: common.trained(role) for role in roles},
        iou_threshold=0.3,  # 2022, Sec. 4.1, at every level
        fuse="logits",
        localizer=localizer,  # network | random | centre | edges
        view=224,  # px
        **about["method"],  # inputs, views of a level, levels after the first
    )


def trainings(config, data: str) -> dict:
    """Return the four trainings by stage."""
    about, found = DATA[data], {}
    lengths, given = about.get("lengths", {}), about.get("given", ())
    for stage in (s for s in STAGES if s in lengths or s in given):
        found[stage] = one = common.training(
            config,
            "anchornet" if stage == "localizer" else about["network"],
            anchornet.VIEWS.get(stage, "full"),
            reads=anchornet.READS.get(stage, {}) if stage in lengths else {},
        )
        if "start" in about:
            one.init_from = f"{about['start']}/{stage}/network"
        if stage in given:
            one.program = "given"
            continue
        one.view.k = about["method"]["inputs"] - 1  # of `patch`
        one.batch_size, one.epochs, rate = lengths[stage]
        one.settle_batches = about.get("settle", 0)
        one.optimizer.update(schedule="cosine", warmup=0.05, learning_rate=rate)
        if side := about["shrunk"].get(stage):
            one.data.update(image_size=side, resize=side)
    return found


def get_config(argument="plates"):
    """Return the pipeline on DATA, which `argument` names."""
    (data,) = common.choose(argument, data=DATA)
    about = DATA[data]
    config = common.on("plates")  # none of them is cut, flipped or resized
    config.data.name, config.data.image_size = about["name"], about["image_size"]
    config.batch_size = about["evaluation"]
    config.timing.images, config.timing.batch_size = about["timing"]
    if data == "megapixel":
        config.dtype = "bfloat16"
    stages = trainings(config, data)
    references = {
        "random_patches": method(about, "glance", "patch", localizer="random")
    }
    if "full_image" in stages:
        references["full_image"] = common.static(common.trained("full_image"))
    own = method(about, "localizer", "glance", "patch")
    return common.pipeline(config, stages, own, references)
