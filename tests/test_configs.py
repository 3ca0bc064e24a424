"""Every config file loads, has no key of its own, and its docstring tells the truth."""

import importlib
import inspect
import pathlib
import re

import jax
import pytest

from anchornet_jax import models
from anchornet_jax.methods import registry, views
from anchornet_jax.programs import localizers, pipeline
from anchornet_jax.training import optimizers, train
from configs import common, large

ROOT = pathlib.Path(__file__).parent.parent
NETWORKS = ("resnet50", "densenet201")
EXITS = ("msdnet", "ranet")  # networks with several exits
CONFIGS = [  # (file, argument)
    ("anchornet", ""),
    *(("anchornet", f"{data},resnet18") for data in common.DATA),
    *(("anchornet", f"imagenet,{network}") for network in NETWORKS),
    ("anchornet", "imagenet,hcgnet_c"),
    ("anchornet_2020", ""),
    *(("anchornet_2020", f"imagenet,{network}") for network in NETWORKS),
    ("bagnet", ""),
    *(("bagnet", f"{data},resnet50") for data in common.DATA),
    *((file, data) for file in (*EXITS, "saccader") for data in ("", *common.DATA)),
    ("gfnet", ""),
    *(("gfnet", f"{data},densenet121") for data in common.DATA),
    *(("gfnet", f"imagenet,{name}") for name in ("regnet_y_600mf", "efficientnet_b2")),
    *(("folder", machine) for machine in ("", "laptop", "gpu")),
    *(("large", data) for data in ("", *large.DATA)),
    ("photos", ""),
    ("static", ""),
    *(("static", f"{data},resnet18") for data in common.DATA),
    ("compare", ""),
    ("export", ""),
]
OWN = {"name", "networks"}  # keys of `config.method` that are not its arguments


def load(file, argument):
    """Return a config as main.py gets it."""
    module = importlib.import_module(f"configs.{file}")
    return module.get_config(*[argument] if argument else [])


def keys(tree, prefix=""):
    """Return the path of every value; what a method takes is the method's own."""
    if not hasattr(tree, "items"):
        return {prefix}
    if prefix in (".method", ".references", ".networks", ".parts", ".optimizer.rates"):
        return {prefix}
    return {k for name, part in tree.items() for k in keys(part, f"{prefix}.{name}")}


def methods(config):
    """Return all methods that a config's stages evaluate or train, with the stage."""
    return [
        (name, method)
        for name, stage in config.stages.items()
        for method in (stage.method, *stage.references.values())
        if method.name
    ]


def test_all_files_are_tested():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    # tests/test_convert.py and test_predict.py test these two.
    others = {"__init__", "common", "convert", "predict"}
    assert files - others == {file for file, _ in CONFIGS}


@pytest.mark.parametrize(("file", "argument"), CONFIGS)
def test_config(file, argument):
    config = load(file, argument)
    known = keys(common.get_config())
    for stage in (config, *config.stages.values()):
        names = {k for k in keys(stage) if not k.startswith(".stages.")}
        assert names <= known and known - names <= {".stages", ".order"}
        assert stage.program in pipeline.PROGRAMS
        assert stage.model in models.MODELS
        assert stage.view.name in views.VIEWS
    assert set(config.order) == set(config.stages)


@pytest.mark.parametrize(("file", "argument"), CONFIGS)
def test_methods_of_a_config(file, argument):
    """Their arguments are those of the registry's, their networks those of stages."""
    config = load(file, argument)
    assert bool(methods(config)) == bool(config.stages)
    for used, method in methods(config):
        arguments = set(inspect.signature(registry.METHODS[method.name]).parameters)
        assert set(method) - OWN <= arguments
        for role, path in method.networks.items():
            if not path:  # a new one
                assert role in config.stages[used].parts
                continue
            stage, name = path.split("/")
            several = config.stages[stage].objective in train.OF_A_METHOD
            assert name == (role if several else "network")
            assert config.stages[stage].program in ("train", "given")
            assert config.order.index(stage) < config.order.index(used)


@pytest.mark.parametrize("file", sorted({file for file, _ in CONFIGS}))
def test_docstring_has_commands_that_work(file):
    text = importlib.import_module(f"configs.{file}").__doc__
    commands = re.findall(r"--config=configs/(\w+)\.py:?(\S*) ", text)
    assert commands and len(commands) == text.count("--workdir=runs/")
    for named, argument in commands:
        assert named == file
        load(file, argument)
    everything = keys(load(file, "")) | keys(common.get_config())
    for key in re.findall(r"--config\.([\w.]*\w)", text):
        assert f".{key}" in everything, key
    assert "Data: " in text


@pytest.mark.parametrize(
    "file",
    ["anchornet", "anchornet_2020", "bagnet", "gfnet", "saccader", "static", *EXITS],
)
def test_stages_share_data_splits_and_seed(file):
    """So that one flag gives a pipeline another data set."""
    config = load(file, "").lock()
    config.update_from_flattened_dict(
        {
            "data.name": "folder:/mine",
            "data.resize": 300,
            "test_split": "val",
            "seed": 7,
        }
    )
    for stage in config.stages.values():
        stage = stage.copy_and_resolve_references().to_dict()
        assert stage["data"] == config.data.to_dict()
        assert stage["data"]["name"] == "folder:/mine"
        assert (stage["test_split"], stage["seed"]) == ("val", 7)


def test_stage_one_of_2022():
    """Sec. 4.1: batch, epochs, rate and its drops."""
    stage = load("anchornet", "imagenet,resnet50").stages.localizer
    assert (stage.model, stage.batch_size, stage.epochs) == ("anchornet", 256, 100)
    optimizer = stage.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (0.1, "step")
    assert optimizer.boundaries == (0.3, 0.6, 0.9) and optimizer.nesterov


def test_localizer_of_2020():
    """2020, Sec. 4.1: batch, epochs, rate and its drops."""
    stage = load("anchornet_2020", "imagenet,resnet50").stages.localizer
    found = (stage.model, stage.batch_size, stage.epochs)
    assert found == ("anchornet_multiscale", 256, 100)
    optimizer = stage.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (0.1, "step")
    assert optimizer.boundaries == (0.3, 0.6, 0.9) and not optimizer.nesterov


@pytest.mark.parametrize("file", EXITS)
def test_networks_with_exits(file):
    """MSDNet, 2018: batch, epochs, rate and its drops; the largest published network."""
    config = load(file, "imagenet")
    splits = config.train_split, config.calibration_split
    assert splits == ("train[50000:]", "train[:50000]")
    stage = config.stages.network
    found = (stage.model, stage.view.name, stage.batch_size, stage.epochs)
    wanted = {"msdnet": "msdnet_7_7", "ranet": "ranet_64"}[file]
    assert found == (wanted, "full", 256, 90)
    optimizer = stage.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (0.1, "step")
    assert optimizer.boundaries == (1 / 3, 2 / 3) and not optimizer.nesterov
    assert load(file, "").stages.network.model == f"{file}_small"


def test_hcgnet_restarts_as_its_paper_does():
    """Periods of 10, 20, 40, 80, 160 and 320 epochs; Stage II is that of the others."""
    stages = load("anchornet", "imagenet,hcgnet_c").stages
    stage = stages.full_image
    found = (stage.epochs, stage.label_smoothing, stage.mixup)
    assert found == (630, 0.1, 0.4)
    optimizer = stage.optimizer
    assert (optimizer.schedule, optimizer.weight_decay) == ("restarts", 4e-5)
    ends = [round(630 * share, 6) for share in optimizer.boundaries]
    assert ends == [10, 30, 70, 150, 310]
    assert (stages.glance.epochs, stages.glance.mixup) == (30, 0)


def test_saccader_has_three_phases():
    """Each starts from the one before and leaves to it what it has learned."""
    stages = load("saccader", "imagenet").stages
    assert [
        (stages[name].objective, stages[name].init_from)
        for name in ("representation", "location", "joint")
    ] == [
        ("saccader_representation", ""),
        ("saccader_location", "representation/network"),
        ("saccader_joint", "location/network"),
    ]
    model = models.create("saccader_small", 3)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    for name, wanted in [
        ("representation", {"representation"}),
        ("location", set(params) - {"representation"}),
        ("joint", set(params)),
    ]:
        pattern = stages[name].optimizer.freeze
        learn = {part for part in params if not optimizers.frozen(pattern, f"{part}/a")}
        assert learn == wanted


def test_bagnet_chooses_among_patches_of_anchornet():
    stages = load("bagnet", "imagenet,resnet50").stages
    assert stages.localizer.model == "bagnet33"
    assert stages.localizer.epochs == stages.full_image.epochs == 90
    assert stages.patch.view["size"] == stages.evaluate.method["size"] == 95


def test_rivals_of_2020_are_those_of_its_tables():
    assert importlib.import_module("configs.anchornet_2020").RIVALS == localizers.RIVALS


@pytest.mark.parametrize(
    ("network", "rate", "factors", "decay", "auxiliary", "epochs", "hidden"),
    [
        ("resnet50", 0.01, (10, 1), 1e-4, 1, 60, 1024),
        ("densenet201", 0.01, (10, 1), 1e-4, 1, 60, 1024),
        ("regnet_y_800mf", 0.02, (5, 0.5), 5e-5, 1, 60, 256),
        ("mobilenet_v3_large", 0.005, (20, 2), 1e-4, 5, 90, 256),
        ("efficientnet_b3", 0.005, (20, 2), 1e-4, 5, 30, 256),
    ],
)
def test_three_trainings_of_gfnet(
    network, rate, factors, decay, auxiliary, epochs, hidden
):
    """The published settings: rates, decay, epochs, and what learns at which stage."""
    stages = load("gfnet", f"imagenet,{network}").stages
    cascade = auxiliary == 5
    for name, factor in zip(("warm_up", "fine_tune"), factors):
        stage = stages[name]
        assert stage.objective == "gfnet_networks" and stage.batch_size == 256
        assert (stage.epochs, stage.auxiliary) == (epochs, auxiliary)
        assert stage.fixed == (("glance",) if cascade else ())
        own = stage.optimizer
        assert (own.name, own.schedule, own.warmup) == ("sgd", "cosine", 0)
        assert (own.learning_rate, own.weight_decay) == (rate, decay)
        assert own.nesterov and own.rates.to_dict() == {"classifier": factor}
    assert stages.warm_up.method.places == "random"
    assert "policy" not in stages.warm_up.method.networks
    policy, own = stages.policy, stages.policy.optimizer
    assert (policy.objective, policy.epochs, policy.batch_size) == (
        "gfnet_policy",
        15,
        256,
    )
    assert (own.name, own.learning_rate, own.momentum) == ("adam", 3e-4, 0.9)
    assert (own.schedule, own.boundaries, own.weight_decay) == ("step", (), 0)
    assert policy.method.networks.patch == "warm_up/patch"
    assert policy.parts.policy.hidden == hidden
    assert (
        policy.parts.classifier.name == f"gfnet_{'cascade' if cascade else 'recurrent'}"
    )
    assert stages.fine_tune.method.networks.policy == "policy/policy"
    assert stages.fine_tune.method.networks.classifier == "warm_up/classifier"
    ends = stages.evaluate.method.networks
    assert ends.patch == "fine_tune/patch" and ends.policy == "policy/policy"
    assert ends.glance == ("glance/network" if cascade else "fine_tune/glance")


def test_networks_that_gfnet_does_not_know():
    with pytest.raises(ValueError, match="`network` is 'bagnet9'; GFNet knows names"):
        load("gfnet", "plates,bagnet9")


def test_a_laptop_trains_the_last_blocks():
    """Those of the pretrained network alone; AnchorNet has no weights to keep."""
    stages = load("folder", "laptop").stages
    model = models.create("efficientnet_lite0", 3)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    with jax.disable_jit():
        params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    for stage in ("full_image", "glance", "patch"):
        pattern = stages[stage].optimizer.freeze
        learn = [name for name in params if not optimizers.frozen(pattern, f"{name}/a")]
        blocks = [f"_blocks_{i}" for i in range(11, 16)]
        assert sorted(learn) == sorted([*blocks, "_conv_head", "_bn1", "_fc"])
    assert stages.localizer.optimizer.freeze == ""
    assert stages.full_image.init_from == "pretrained:efficientnet_lite0"
    assert stages.glance.init_from == "pretrained:efficientnet_lite0"


@pytest.mark.parametrize("size", [63, 95, 111])
def test_stage_two_of_2020(size):
    """Sec. 4.1: the patches of the slacker settings, of each scale."""
    config = load("anchornet_2020", "imagenet,resnet50")
    stage = config.stages[f"b{size}"]
    assert stage.localizer == config.stages.analyses_2020.networks.localizer
    found = dict(stage.view)
    assert (found["name"], found["branch"], found["preset"]) == (
        "patches",
        size,
        "many",
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("stage", "view"), [("glance", "resized"), ("patch", "patches")]
)
def test_stage_two(network, stage, view):
    """2022, Sec. 4.1; no Nesterov and k = 4 are the published implementation's."""
    config = load("anchornet", f"imagenet,{network}").stages[stage]
    assert (config.model, config.view.name, config.view.k) == (network, view, 4)
    assert (config.batch_size, config.epochs) == (256, 30)
    assert config.init_from == "full_image/network"
    assert config.localizer == ("localizer/network" if stage == "patch" else "")
    optimizer = config.optimizer.to_dict()
    del optimizer["boundaries"]  # of the step schedule
    assert optimizer == {
        "name": "sgd",
        "learning_rate": 0.01,
        "schedule": "cosine",
        "warmup": 0.0,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
        "freeze": "",
        "rates": {},
    }


@pytest.mark.parametrize(
    ("file", "argument", "known"),
    [
        ("anchornet", "resnet50", "plates, imagenette, folder, imagenet"),
        ("anchornet", "cifar,resnet50", "plates, imagenette, folder, imagenet"),
        ("anchornet", "plates,resnet50,full", "plates, imagenette, folder, imagenet"),
        ("anchornet_2020", "folder,resnet50", "plates, imagenet"),
        ("gfnet", "resnet50", "plates, imagenette, folder, imagenet"),
        ("msdnet", "cifar", "plates, imagenette, folder, imagenet"),
    ],
)
def test_unknown_choice(file, argument, known):
    kinds = "DATA" if file in EXITS else "DATA,NETWORK"
    message = f"`argument` is '{argument}'; give {kinds} .* with data: {known}"
    with pytest.raises(ValueError, match=message):
        load(file, argument)


def test_photos_teach_the_localiser_alone():
    """A key of the data that a stage gives itself is its own; the others are shared."""
    config = load("photos", "").lock()
    stages = config.stages
    config.update_from_flattened_dict({"data.name": "folder:/mine", "data.resize": 300})
    assert config.order[1:5] == ("full_image", "localizer", "glance", "patch")
    assert stages.localizer.teacher == "full_image/network"
    for name in ("full_image", "glance", "patch"):
        assert stages[name].data.turns and not stages[name].teacher
        assert stages[name].init_from == "pretrained:efficientnet_lite0"
        assert stages[name].epochs == stages.full_image.epochs
    for stage in stages.values():
        assert (stage.data.name, stage.data.resize) == ("folder:/mine", 300)
        assert stage.heatmap == "agnostic"
    assert stages.evaluate.method.heatmap == stages.export.method.heatmap == "agnostic"
    assert stages.evaluate.references.random_patches.heatmap == "predicted"
    with pytest.raises(ValueError, match="nothing follows the file"):
        load("photos", "laptop")


def test_large_images():
    """Published sizes and numbers of patches; where networks come from and what they see."""
    stages = load("large", "megapixel").stages
    assert stages.data.data.name == "megapixel_mnist/ats"
    assert stages.localizer.train_split == "train"  # all 5,000 images
    for name in ("full_image", "patch", "evaluate", "export"):
        assert stages[name].data.image_size == 1500
    assert stages.evaluate.method.inputs - 1 == stages.patch.view.k == 10
    assert stages.evaluate.references.full_image.input_size == 0  # full resolution
    small = load("large", "megapixel_small").stages.evaluate.data
    assert (small.name, small.image_size) == ("megapixel_mnist/ats_easy", 500)
    stages = load("large", "plates").stages
    for name in ("localizer", "full_image", "glance", "patch"):
        assert stages[name].init_from == f"runs/demo/{name}/network"
    assert stages.patch.program == "given" and stages.localizer.program == "train"
    mixed = load("large", "mixed")
    assert {s.program for s in mixed.stages.values()}.isdisjoint({"train"})
    assert mixed.stages.evaluate.data.image_size == 0
    assert "full_image" not in mixed.stages
