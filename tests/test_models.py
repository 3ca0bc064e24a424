"""Every network: parameters, multiply-adds, and what all of them promise."""

import functools
import gc

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.models import layers, mobilenet, multiply_adds, regnet
from tests.selection import slow_but
from tests.test_multi_exit_models import PUBLISHED

# Parameters, and multiply-adds at 224 and at 95 pixels, all with 1000 classes. Where no
# source is named: torchvision 0.28, its parameters summed and the multiply-adds of its
# Conv2d and Linear layers counted with hooks in PyTorch 2.13. Published figures agree:
# torchvision's table of weights rounds the same multiply-adds to 0.01 G.
NETWORKS = {
    # 2022, Sec. 3.2: 60 M multiply-adds. The published state dict has 674,984 entries, of
    # which 288 are never used.
    "anchornet": (674_696, 60_538_544, 4_433_072),
    # 2020, Sec. 1: 1.6 M, 0.5 G; tests/test_multiscale.py. At 224 and 111 pixels, with the
    # three classifiers of training, which a first call runs.
    "anchornet_multiscale": (1_550_313, 485_804_200, 55_312_936),
    "anchornet_multiscale_third": (325_031, 82_080_464, 8_615_184),
    # No source: it exists only here.
    "resnet10": (1_483_400, 203_769_856, 37_636_096),
    "resnet10_three_quarters": (883_552, 116_700_672, 21_591_552),
    "resnet10_half": (436_536, 53_715_968, 9_970_688),
    "resnet18": (11_689_512, 1_814_073_344, 333_615_104),
    "resnet34": (21_797_672, 3_663_761_408, 673_353_728),
    # 2022, Sec. 3.2 has 4,089 M; the authors' code counts 0.752 G at 95 pixels.
    "resnet50": (25_557_032, 4_089_184_256, 752_746_496),
    "resnet101": (44_549_160, 7_801_405_440, 1_434_583_040),
    "resnet152": (60_192_808, 11_513_626_624, 2_116_419_584),
    "resnext50_32x4d": (25_028_904, 4_230_479_872, 778_698_752),
    "densenet121": (7_978_856, 2_834_161_664, 521_396_224),
    "densenet161": (28_681_000, 7_727_907_072, 1_421_213_952),
    "densenet169": (14_149_480, 3_359_843_328, 618_472_448),
    # The authors' code counts 0.790 G at 95 pixels.
    "densenet201": (20_013_928, 4_291_365_888, 789_777_408),
    # tests/golden/peers_counts.json.
    "hcgnet_b": (12_845_501, 2_002_776_044, 369_987_404),
    "hcgnet_c": (42_153_208, 6_971_626_636, 1_285_732_076),
    # No source: it exists only here.
    "hcgnet_small": (205_987, 402_330_452, 73_972_532),
    "mobilenet_v3_large": (5_483_032, 216_589_760, 43_060_160),
    "efficientnet_b0": (5_288_548, 385_814_752, 72_420_832),
    "efficientnet_b1": (7_794_184, 569_651_680, 106_579_680),
    "efficientnet_b2": (9_109_994, 658_963_440, 123_255_920),
    "efficientnet_b3": (12_233_232, 962_708_240, 179_595_920),
    # Lite0: counted with hooks in PyTorch at 224, 128 and 95 pixels. The others have no
    # source for multiply-adds; Keras' table of Lite1 and Lite2 rounds to 5.4 M and 6.1 M.
    "efficientnet_lite0": (4_652_008, 385_187_552, 71_793_632),
    "efficientnet_lite1": (5_416_680, 502_467_680, 93_334_880),
    "efficientnet_lite2": (6_092_072, 576_509_424, 106_934_384),
    "regnet_y_400mf": (4_344_144, 401_842_848, 74_708_128),
    # timm's table of results: 6.06 M parameters, 0.61 G. torchvision has none.
    "regnet_y_600mf": (6_055_160, 601_220_992, 111_626_112),
    "regnet_y_800mf": (6_432_512, 833_856_256, 154_483_456),
    "regnet_y_1_6gf": (11_202_430, 1_612_076_160, 298_051_200),
    "bagnet9": (15_688_744, 15_932_243_968, 2_688_897_216),
    "bagnet17": (16_213_032, 15_654_502_400, 2_490_847_424),
    "bagnet33": (18_310_184, 16_259_530_752, 2_408_009_920),
    # No source alone; tests/test_saccader.py counts it with its class map.
    "bagnet77_low": (20_573_736, 13_924_879_104, 1_423_027_392),
    # No source: it exists only here.
    "bagnet33_small": (384_816, 147_620_864, 22_929_048),
    "saccader": (35_523_112, 19_323_197_184, 1_560_606_912),
    "saccader_small": (443_312, 269_013_856, 34_338_520),
    # tests/golden/peers_counts.json, at 224 pixels. Theirs cannot run at 95.
    "msdnet_7_7": (62_314_472, 3_246_180_864, 626_919_424),
    "msdnet_4_4": (23_958_440, 1_355_606_016, 260_455_936),
    "ranet_64": (149_144_186, 3_326_348_714, 700_568_524),
    "ranet_32": (131_123_991, 2_822_624_635, 597_365_645),
    # No source: they exist only here.
    "msdnet_small": (1_468_784, 214_866_816, 40_131_456),
    "ranet_small": (1_948_930, 237_145_164, 44_639_724),
}


# One of each family, the smallest.
FEW = ("anchornet", "anchornet_multiscale_third", "resnet10", "resnet50", "densenet121")
FEW += ("hcgnet_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_lite0")
FEW += ("regnet_y_400mf", "bagnet33_small", "saccader_small", "msdnet_small")
FEW += ("ranet_small",)


@pytest.fixture(autouse=True, scope="module")
def no_collection():
    """Tracing makes many small objects; looking for dead ones takes a fifth of it."""
    gc.disable()
    yield
    gc.enable()


def images(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), "float32")


def test_table_is_complete():
    assert NETWORKS.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", slow_but(FEW, models.MODELS))
def test_parameters_and_macs(name):
    model = models.create(name, num_classes=1000)
    parameters = set()

    def run(
        key, images
    ):  # one trace gives both, and drawing parameters multiplies none
        (logits, _), variables = model.init_with_output(key, images)
        parameters.add(multiply_adds.parameters(variables))
        return logits

    sizes = (224, 111 if name.startswith("anchornet_multiscale") else 95)
    wanted = dict(zip(sizes, NETWORKS[name][1:]))
    if name in PUBLISHED:  # test_multi_exit_models counts them at 224, exit by exit
        del wanted[224]
    with jax.disable_jit():  # small functions traced in line: half the time
        macs = {
            size: multiply_adds.macs(run, jax.random.key(0), images(size))
            for size in wanted
        }
    assert macs == wanted and parameters == {NETWORKS[name][0]}


@pytest.mark.parametrize(
    "name",
    ["resnext50_32x4d", "densenet121", "mobilenet_v3_large", "efficientnet_b0"]
    + ["regnet_y_400mf"],
)
def test_bfloat16_keeps_float32_parameters_and_logits(name):
    model = models.create(name, num_classes=7, dtype="bfloat16")
    with jax.disable_jit():
        (logits, out), variables = jax.eval_shape(
            model.init_with_output, jax.random.key(0), images(95)
        )
    assert (logits.shape, logits.dtype) == ((1, 7), jnp.float32)
    assert out["features"].shape[:3] == (1, 3, 3)  # stride 32
    assert out["features"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_b0"])
def test_training_drops_at_random(name):
    model = models.create(name, num_classes=7)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    rngs = {"dropout": jax.random.key(0)}
    with jax.disable_jit():
        variables = jax.eval_shape(model.init, jax.random.key(0), images(32))
        jax.eval_shape(functools.partial(train, rngs=rngs), variables, images(32))
        with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
            jax.eval_shape(train, variables, images(32))


def test_stochastic_depth_leaves_out_whole_images(key):
    """What is left weighs more, so that the mean stays (Huang et al., 2016)."""

    def block(rate):
        conv_bn = functools.partial(
            layers.conv_bn, train=False, axis_name=None, dtype=jnp.float32
        )
        drop = nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=False)
        return mobilenet.MBConv(conv_bn, 3, 4, 4, 1, nn.relu, drop=drop)

    @jax.jit
    def run(x):
        variables = block(0.0).init({"params": key, "dropout": key}, x)
        runs = (block(r).apply(variables, x, rngs={"dropout": key}) for r in (0, 0.25))
        return [result - x for result in runs]

    added, dropped = run(np.random.default_rng(0).normal(size=(64, 2, 2, 4)))
    kept = np.abs(dropped).max((1, 2, 3)) > 0
    assert 38 < kept.sum() < 58  # three standard deviations around 48
    np.testing.assert_allclose(dropped[kept], added[kept] / 0.75, atol=1e-5)


def test_regnet_stages():
    # Channels and blocks of RegNetY-600MF in pycls' model zoo and in timm.
    expected = ((1, 48), (3, 112), (7, 256), (4, 608))
    assert regnet.stages(15, 48, 32.54, 2.32, 16) == expected
