"""GFNet: a glance, then patches where a policy says, evaluation and export.

    python main.py --config=configs/gfnet.py --workdir=runs/gfnet_demo
    python main.py --config=configs/gfnet.py:folder,resnet18 --workdir=runs/gfnet_mine
    python main.py --config=configs/gfnet.py:imagenet,resnet50 --workdir=runs/gfnet
    python main.py --config=configs/gfnet.py:imagenet,regnet_y_600mf --workdir=runs/gfnet_y

DATA,NETWORK after the colon; the first command is `plates,resnet10`. NETWORK is one of
models.MODELS whose name begins as a key of FAMILIES. Stages, in order: `full_image` and
`glance` (where the two encoders start: on whole images, and on those resized to a patch),
`warm_up` (random places, Sec. 3.2), `policy` (by proximal policy optimisation),
`fine_tune` (places of the policy), `evaluate` and `export`. The references have the same
networks look at random places (`random_places`), and those of `warm_up`, which have seen
no others (`warmed_up_at_random`). Of the paper's own training programs the first two
stages take the place of weights that were given; that a glance is bicubic in training, and
bilinear in the published DenseNets and RegNets alone, is `method.resize`.

Published weights, which configs/convert.py turns into a DIRECTORY, take the place of the
trainings: `--config.stages.fine_tune.program=given` and
`--config.stages.fine_tune.init_from=DIRECTORY`, for `warm_up` and `policy` the same, for
`full_image` and `glance` DIRECTORY/patch and DIRECTORY/glance. For RegNets add
`--config.stages.evaluate.method.own_head=True` (and of `export`, likewise).

Data: `plates` draws itself; `imagenette/320px-v2` is downloaded (342 MB); `folder` reads
`--config.data.name=folder:DIRECTORY`, train/CLASS/*.jpg and val/CLASS/*.jpg; `imagenet`
is imagenet2012 of TFDS, of whose training images 25,000 are kept for calibration.

Expected on ImageNet's validation images (Glance and Focus, 2020, Fig. 4 and 5, digitised;
G multiply-adds): ResNet-50 `budgeted` 69.7 % at 0.80, 72.5 % at 1.0, 75.1 % at 1.5 and
75.9 % at 2.0 G, the better of patches of 96 and 128 pixels; DenseNet-121 `anytime` 68.9,
72.7, 73.9, 74.3, 74.5 % at 0.53, 1.09, 1.64, 2.20, 2.75 G; RegNetY 70.4 % at 0.155, 73.6 %
at 0.25, 75.9 % at 0.55 G; MobileNetV3 71.5 % at 0.08, 75.5 % at 0.187 G. On `plates`, see
benchmarks/README.md: 93.4 % with two inputs at 76 M, 83.1 % at a random place.
"""

from typing import NamedTuple

from configs import common


class Family(NamedTuple):
    """How the networks of a name are trained and asked: GFNet, 2020, Appendix B.

    Attributes:
      rate: of the encoders.
      classifier: factor of that rate in the first training, for the classifier.
      finer: the same in the last training.
      weight_decay: of both.
      auxiliary: weight of the encoders' own heads.
      epochs: of both on ImageNet.
      fixed: roles that those leave as they are.
      patch_size: px.
      inputs: T.
    """

    rate: float
    classifier: float
    finer: float
    weight_decay: float
    auxiliary: float
    epochs: float
    fixed: tuple[str, ...]
    patch_size: int
    inputs: int


FAMILIES = {
    "resnet": Family(0.01, 10.0, 1.0, 1e-4, 1.0, 60.0, (), 96, 5),
    "densenet": Family(0.01, 10.0, 1.0, 1e-4, 1.0, 60.0, (), 96, 5),
    "regnet": Family(0.02, 5.0, 0.5, 5e-5, 1.0, 60.0, (), 96, 5),
    "mobilenet": Family(0.005, 20.0, 2.0, 1e-4, 5.0, 90.0, ("glance",), 96, 3),
    "efficientnet_b": Family(0.005, 20.0, 2.0, 1e-4, 5.0, 30.0, ("glance",), 128, 4),
}
CASCADES = ("mobilenet", "efficientnet_b")
LINEAR = ("resnet", "densenet")  # whose policy has two linear layers
SMALL_HIDDEN = 256  # of both recurrent units on plates
PLATES = {  # stage: (batch size, epochs, learning rate)
    "full_image": (32, 1.6, 0.1),
    "glance": (32, 1.2, 0.05),
    "warm_up": (32, 1.2, 0.01),
    "policy": (32, 1.2, 1e-3),
    "fine_tune": (32, 0.8, 0.01),
}
SMALL = {  # thousands of images
    "full_image": (64, 40.0, 0.05),
    "glance": (64, 15.0, 0.01),
    "warm_up": (64, 15.0, 0.01),
    "policy": (64, 10.0, 3e-4),
    "fine_tune": (64, 15.0, 0.01),
}
LENGTHS = {"plates": PLATES, "imagenette": SMALL, "folder": SMALL}
IMAGENET = {  # the encoders' starts; the paper took such weights as they were
    "full_image": {
        "epochs": 90.0,
        "optimizer": {"nesterov": False, "boundaries": (1 / 3, 2 / 3)},
    },
    "glance": {
        "epochs": 30.0,
        "optimizer": {"schedule": "cosine", "nesterov": False, "learning_rate": 0.01},
    },
}
ADAM = {  # of the policy; its rate stays what it is
    "name": "adam",
    "schedule": "step",
    "boundaries": (),
    "nesterov": False,
    "weight_decay": 0.0,
}


def family(network: str) -> str:
    """Return the key of `FAMILIES` with which a network's name begins.

    Raises:
      ValueError: if there is none.
    """
    for name in FAMILIES:
        if network.startswith(name):
            return name
    raise ValueError(
        f"`network` is {network!r}; GFNet knows names that begin with "
        f"{', '.join(FAMILIES)}"
    )


def parts(data: str, network: str) -> dict:
    """Return what classifier and policy are, as `models.create` makes them."""
    name, small = family(network), data == "plates"
    linear = name in LINEAR and not small
    hidden = SMALL_HIDDEN if small or not linear else 1024
    classifier = {"name": "gfnet_cascade"}
    if name not in CASCADES:
        recurrent = SMALL_HIDDEN if small else 1024
        classifier = {"name": "gfnet_recurrent", "hidden": recurrent}
    policy = {"name": "gfnet_policy", "hidden": hidden, "convolutional": not linear}
    return {"classifier": classifier, "policy": policy}


def method(network: str, *, places: str, **paths: str):
    """Return the method of such networks.

    Args:
      network: the encoders' name.
      places: what says where to look, policy | random.
      **paths: role -> directory, empty for a new network.
    """
    own = FAMILIES[family(network)]
    return common.method(
        "gfnet",
        paths,
        inputs=own.inputs,  # T: the glance and T - 1 patches
        patch_size=own.patch_size,  # px
        resize="bicubic",  # of the glance: bicubic | bilinear
        own_head=False,  # the glance's own head answers first, as in published RegNets
        places=places,
    )


def learned(stage: str, network: str) -> dict[str, str]:
    """Return where encoders and classifier are after a stage that has trained them."""
    paths = {r: common.trained(stage, r) for r in ("glance", "patch", "classifier")}
    for role in FAMILIES[family(network)].fixed:
        paths[role] = common.trained(role)
    return paths


def lengths(data: str, stage: str, network: str) -> dict:
    """Return batch, epochs and optimiser of a stage on a data set."""
    own, policy = FAMILIES[family(network)], stage == "policy"
    factors = {"warm_up": own.classifier, "fine_tune": own.finer}
    if data == "imagenet":
        if stage in IMAGENET:
            return IMAGENET[stage]
        found = {"epochs": 15.0 if policy else own.epochs}
        optimizer = {"schedule": "cosine", "learning_rate": own.rate}
        optimizer |= {"weight_decay": own.weight_decay}
        rate = 3e-4
    else:
        batch_size, epochs, rate = LENGTHS[data][stage]
        found = {"batch_size": batch_size, "epochs": epochs}
        optimizer = {"schedule": "cosine", "warmup": 0.05, "learning_rate": rate}
    if policy:
        optimizer = ADAM | {"learning_rate": rate}
    elif stage in factors:
        optimizer["rates"] = {"classifier": factors[stage]}
    return found | {"optimizer": optimizer}


def trainings(config, data: str, network: str) -> dict:
    """Return the five trainings by stage."""
    own, new = FAMILIES[family(network)], parts(data, network)
    starts = {
        "glance": common.trained("glance"),
        "patch": common.trained("full_image"),
        "classifier": "",
    }
    warm = learned("warm_up", network)
    known = warm | {"policy": common.trained("policy", "policy")}
    several = {
        "warm_up": ("gfnet_networks", "random", starts),
        "policy": ("gfnet_policy", "policy", warm | {"policy": ""}),
        "fine_tune": ("gfnet_networks", "policy", known),
    }
    found = {}
    for stage, reads in (("full_image", {}), ("glance", {"init_from": "full_image"})):
        view = "resized" if stage == "glance" else "full"
        found[stage] = common.training(
            config, network, view, reads=reads, **lengths(data, stage, network)
        )
    found["glance"].view.size = own.patch_size
    for stage, (objective, places, paths) in several.items():
        found[stage] = common.training(
            config,
            network,
            "full",
            objective=objective,
            method=method(network, places=places, **paths),
            parts=new,
            fixed=own.fixed,
            auxiliary=own.auxiliary,
            **lengths(data, stage, network),
        )
    return found


def get_config(argument="plates,resnet10"):
    """Return the pipeline on DATA with NETWORK, which `argument` names."""
    data, network = common.choose(argument, data=common.DATA, network=common.ANY)
    config = common.on(data)
    last = learned("fine_tune", network)
    policy = {"policy": common.trained("policy", "policy")}
    return common.pipeline(
        config,
        trainings(config, data, network),
        method(network, places="policy", **last, **policy),
        {
            "full_image": common.static(common.trained("full_image")),
            "random_places": method(network, places="random", **last),
            "warmed_up_at_random": method(
                network, places="random", **learned("warm_up", network)
            ),
        },
    )
