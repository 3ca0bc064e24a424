"""AnchorNet of 2020: patches of three sizes, and the tables and figures of its paper.

    python main.py --config=configs/anchornet_2020.py --workdir=runs/demo_2020
    python main.py --config=configs/anchornet_2020.py:imagenet,resnet50 --workdir=runs/resnet50_2020
    python main.py --config=configs/anchornet_2020.py:imagenet,densenet201 --workdir=runs/densenet201_2020

DATA,NETWORK after the colon; the first command is `plates,resnet10`. The stages of
configs/anchornet.py with the localiser of three branches, and after them `b63`, `b95` and
`b111`, networks for the patches of one branch each, as large as they are (Sec. 4.1, 4.3),
`table_3_2020` and `analyses_2020` (Table 4, Figures 3 to 6). Both compare the localiser
with those that have learned nothing, and with others that you have trained on the same
classes: `--config.stages.table_3_2020.networks.bagnet=runs/bagnet_demo/localizer/network`,
likewise `saccader`, `anchornet_2022`, and `--config.stages.analyses_2020.networks.bagnet`.

Data: on plates `plates/sizes`, digits that fill plates of 36 to 108 pixels; on ImageNet
imagenet2012 of TFDS. There a branch finds up to 24, 10 and 8 patches of an image, so a
GPU of 80 GB takes a batch in parts, `--config.stages.b63.accumulate=8`.

Expected on ImageNet (Table 3): ResNet-50 72.6 % top-1 on the image, and by patches 71.9 %:
70.0, 72.1 and 73.4 % of the 15,050, 18,047 and 16,903 images of the three branches. The
paper has no DenseNet-201; its DenseNet-169: 74.8 and 73.6 %. Time: a quarter of an hour
on two cores for plates; ImageNet was not measured.
"""

from configs import anchornet, common

SIZES = (63, 95, 111)  # px, of the branches
LOCALIZER = {  # a third as wide on plates: trains on a CPU
    "plates": "anchornet_multiscale_third",
    "imagenet": "anchornet_multiscale",
}
PLATES = {  # stage: (batch size, epochs, learning rate)
    "localizer": (16, 1.5, 0.02),
    "full_image": (32, 1.0, 0.1),
    "glance": (32, 0.8, 0.05),
    "patch": (32, 0.3, 0.05),
}
BRANCH = (32, 0.2, 0.05)
RIVALS = ("anchornet_2022", "bagnet", "saccader")  # other localisers, yours to give
PRESET = {"plates": "separate", "imagenet": "many"}  # of Table 3, Sec. 4.1


def branches(config, data: str, network: str) -> dict:
    """Return the trainings of the networks for one branch's patches."""
    stages = {}
    for size in SIZES:
        changes = anchornet.lengths(data, "patch")
        if data == "plates":
            changes |= {"batch_size": BRANCH[0], "epochs": BRANCH[1]}
        stage = common.training(
            config, network, "patches", reads=anchornet.READS["patch"], **changes
        )
        where = {"k": 2} if data == "plates" else {"preset": "many"}
        stage.view.update(branch=size, **where)
        stages[f"b{size}"] = stage
    return stages


def get_config(argument="plates,resnet10"):
    """Return the pipeline on DATA with NETWORK, which `argument` names."""
    data, network = common.choose(argument, data=LOCALIZER, network=common.ANY)
    config = common.on(data)
    stages = anchornet.trainings(config, data, network, LOCALIZER[data])
    if data == "plates":
        config.data.name, config.batch_size = "plates/sizes", 50
        for name, (batch_size, epochs, rate) in PLATES.items():
            stages[name].update(batch_size=batch_size, epochs=epochs)
            stages[name].optimizer.learning_rate = rate
    else:
        stages["localizer"].optimizer.nesterov = False  # 2020 does not tell of any
    stages |= branches(config, data, network)
    names = ("localizer", "full_image", *(f"b{size}" for size in SIZES))
    own = {name: common.trained(name) for name in names}
    networks = {"networks": own | dict.fromkeys(RIVALS, "")}
    return common.pipeline(
        config,
        stages,
        anchornet.method("localizer", "glance", "patch"),
        anchornet.references(),
        table_3_2020={**networks, "view": {"preset": PRESET[data]}},
        analyses_2020={**networks, "analysed_images": 200 if data == "plates" else 0},
    )
