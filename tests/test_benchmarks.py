"""The benchmarks run where jax, flax and optax alone are installed."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from anchornet_jax.inference import exit_table, export
from tests.test_export import (
    exported,  # noqa: F401
    method,  # noqa: F401
)

BLOCKED = """
import runpy, sys
for name in ("tensorflow", "tensorflow_datasets", "orbax", "clu", "ml_collections",
             "matplotlib", "PIL", "torch"):
    sys.modules[name] = None  # importing it raises ImportError
sys.argv = sys.argv[1:]
sys.path.insert(0, "benchmarks")  # as Python does for a script
runpy.run_path(sys.argv[0], run_name=sys.argv.pop())
"""


def run(script, *arguments, name="__main__", devices=2):
    """Run a benchmark where nothing else can be imported; return what it printed."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.getcwd(),
    }
    command = [sys.executable, "-c", BLOCKED, f"benchmarks/{script}", *arguments, name]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_training_step(tmp_path):
    output = tmp_path / "training_step.json"
    printed = run(
        "training_step.py",
        "--batch=1",
        "--size=95",
        "--repeats=1",
        f"--output={output}",
    )
    rows = json.loads(output.read_text())["milliseconds"]
    assert len(printed.splitlines()) == len(rows) + 1
    # Two forms of three networks' steps, of four dense kernels, seven depthwise layers,
    # swish and max pooling, and the forward pass.
    assert len(rows) == 2 * (3 + 4 + 7 + 2) + 1 and min(rows.values()) > 0


@pytest.mark.slow
def test_input_speed(tmp_path):
    """The one that needs TensorFlow."""
    output = tmp_path / "input_speed.json"
    flags = ["--images=16", "--batch=4", f"--output={output}"]
    done = subprocess.run(
        [sys.executable, "benchmarks/input_speed.py", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["images_per_second"] > 0 and found["images_per_core_second"] > 0
    assert "cores feed one device of 1000 images/s" in found["advice"]


def test_throughput(tmp_path):
    output = tmp_path / "throughput.json"
    flags = {"models": "resnet10", "views": "resized", "dtypes": "float32"}
    flags |= {"batch": 1, "seconds": 0.1, "size": 127, "output": output}
    printed = run("throughput.py", *(f"--{k}={v}" for k, v in flags.items()))
    rows = json.loads(output.read_text())["rows"]
    assert len(printed.splitlines()) == len(rows) + 2
    assert [row["devices"] for row in rows] == [1, 2]
    for row in rows:
        assert row["macs_per_second"] > row["images_per_second"] > 0
        assert row["share_of_peak"] is None  # of a CPU


@pytest.mark.slow
def test_early_exit(tmp_path):
    output = tmp_path / "early_exit.json"
    flags = {"network": "resnet10", "size": 127, "images": 12, "batch": 4}
    flags |= {"repeats": 1, "output": output}
    printed = run("early_exit.py", *(f"--{k}={v}" for k, v in flags.items()))
    rows = json.loads(output.read_text())["rows"]
    # A second line for where the time of the engine goes.
    assert len(printed.splitlines()) == len(rows) + 6 + 2
    # Two ways to run all steps, the full image, and five budgets in three ways.
    assert len(rows) == 3 + 3 * 5 and len({row["run"] for row in rows}) == len(rows)
    for row in rows:
        assert row["images_per_second"] > 0 and row["realised_speedup"] > 0
        assert row["same_class"] in (None, 1.0)
        if parts := row["seconds"]:
            shares = parts["networks"] + parts["moving"] + parts["waiting"]
            assert shares == pytest.approx(parts["took"]) and 0 <= parts["empty"] < 1
    budgets = [row["macs_speedup"] for row in rows if row["run"].endswith(" G")]
    assert min(budgets) > 1
    # Every way to run a budget does the same work.
    others = [row["macs_speedup"] for row in rows if " G, " in row["run"]]
    assert others == 2 * budgets


@pytest.mark.slow
def test_growth(tmp_path):
    output = tmp_path / "growth.json"
    flags = "--network resnet10 --size 127 --images 6 --batch 2 --inputs 2 3"
    flags += f" --batches 1 2 --devices 1 2 --lengths 4 8 --output {output}"
    printed = run("growth.py", *flags.split())
    found = json.loads(output.read_text())
    assert len(found["latency"]) == 1 + 5
    for row in found["latency"]:
        assert 0 < row["median_ms"] <= row["percentile_99_ms"]
    few, many = (row["macs"] for row in found["inputs"])
    assert 0 < few < many
    assert [row["devices"] for row in found["devices"]] == [1, 2]
    assert all(row["memory_mb"] > 50 for row in found["stream"])
    assert len(printed.splitlines()) == 6 + 4 * 2 + 1


@pytest.mark.slow
def test_against_pytorch(tmp_path):
    """Without PyTorch its half is left out, and how to install it is said."""
    output = tmp_path / "against.json"
    flags = f"--networks anchornet --sizes 95 --batch 2 --repeats 1 --output {output}"
    printed = run("against_pytorch.py", *flags.split())
    assert "pip install torch" in printed
    rows = json.loads(output.read_text())["rows"]
    assert [row["pass"] for row in rows] == ["forward", "training step"]
    for row in rows:
        assert row["milliseconds"]["jax"] > 0 and row["ratio"] is None


def accelerator():
    """Return the module, which imports none of the benchmarks that it runs."""
    from benchmarks import accelerator

    return accelerator


def test_accelerator_reports():
    """Columns that are the same everywhere are left out, and so is what is nested."""
    rows = [
        {"network": "a", "batch": 1, "rate": 1234.56, "parts": {}, "share": None},
        {"network": "b", "batch": 1, "rate": 0.5, "parts": {}, "share": 0.25},
    ]
    good = {"title": "One", "command": "run one", "found": {"rows": rows, "n": 3}}
    bad = {"title": "Two", "command": "run two", "found": None, "error": "too slow"}
    text = accelerator().report([good | {"error": None}, bad])
    lines = text.splitlines()
    assert "| network | rate | share |" in lines and "| a | 1,235 | – |" in lines
    assert "| b | 0.5 | 0.25 |" in lines and "Not measured: too slow." in lines


def test_accelerator_goes_on_after_a_failure(tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    (tmp_path / "works.py").write_text(
        "import sys; path = sys.argv[-1].partition('=')[2]\n"
        'open(path, "w").write(\'{"rows": [{"a": 1}]}\')'
    )
    module = accelerator()
    monkeypatch.setattr(module, "HERE", tmp_path)
    assert module.run("fails.py", "", tmp_path, 60) == (
        None,
        "failed, exit code 3; see above",
    )
    assert module.run("sleeps.py", "", tmp_path, 0.5) == (None, "stopped after 0 s")
    assert module.run("works.py", "", tmp_path, 60) == ({"rows": [{"a": 1}]}, None)


def test_accelerator_flags_exist():
    """Every flag that it gives is one of the benchmark that it runs."""
    module = accelerator()
    for quick in (False, True):
        for _, script, flags in module.runs(quick):
            text = (module.HERE / script).read_text()
            for flag in (word for word in flags.split() if word.startswith("--")):
                assert f'"{flag}"' in text, (script, flag)


@pytest.mark.slow
def test_accelerator(tmp_path):
    output = tmp_path / "accelerator.json"
    run("accelerator.py", "--quick", f"--output={output}", devices=1)
    results = json.loads(output.read_text())["results"]
    assert len(results) == 5 and not any(result["error"] for result in results)
    assert (tmp_path / "accelerator.md").read_text().count("| --- |") >= 5


@pytest.mark.slow
def test_image_size(tmp_path):
    output = tmp_path / "image_size.json"
    flags = {"network": "resnet10", "sizes": 224, "patches": 1, "repeats": 1}
    flags |= {"ways": "sequence", "output": output}
    printed = run("image_size.py", *(f"--{k}={v}" for k, v in flags.items()), devices=1)
    (row,) = json.loads(output.read_text())["rows"]
    assert "sequence" in printed and row["milliseconds"] > 0
    assert row["macs"] > 0 and row["peak_bytes"] > 1e8


def test_image_size_figure():
    """All axes are logarithmic, every way is a line over its sizes alone."""
    from benchmarks import image_size

    rows = [
        {"way": way, "size": size, "milliseconds": size**power, "macs": 1e9 * size}
        | {"peak_bytes": 2e9}
        for way, power in zip(image_size.WAYS, (0.5, 2, 1.5))
        for size in (224, 1024, 8192)
        if way != "whole image" or size <= 1024
    ]
    about = {"rows": rows, "sizes": [224, 1024, 8192], "patches": 4}
    figure = image_size.draw(about)
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        lengths = [len(line.get_xdata()) for line in axes.lines]
        assert lengths == [3, 2, 3]
    time, macs, memory = (axes.lines[1].get_ydata() for axes in figure.axes)
    assert list(time) == [224**2, 1024**2] and list(macs) == [224, 1024]
    assert list(memory) == [2, 2]
    assert image_size.speedups(rows) == pytest.approx({224: 224**1.5, 1024: 1024**1.5})


def test_stopping_rules(tmp_path):
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.random((2000, 3)), axis=1)
    columns = np.hstack([confidence, rng.random((2000, 3)) < confidence])
    header = [f"{name}_{t}" for name in ("confidence", "correct") for t in (1, 2, 3)]
    table, output = tmp_path / "table.csv", tmp_path / "rules.json"
    np.savetxt(table, columns, delimiter=",", header=",".join(header), comments="")
    flags = f"--table {table} --output {output} --unit ms --seeds 1"
    flags += " --cost 1 2 3 --budgets 1.5 2.5"
    run("stopping_rules.py", *flags.split())
    found = json.loads(output.read_text())
    assert found["anytime"] == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
    assert (found["unit"], found["budgets"]) == ("ms", [1.5, 2.5])
    for rule in found["rules"].values():
        assert rule["mean_cost"] == pytest.approx([1.5, 2.5], rel=0.05)
        assert rule["accuracy"][1] > rule["accuracy"][0] > 0.4


def test_held_budgets(tmp_path):
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.random((2000, 3)), axis=1)
    data = exit_table.ExitTable(
        confidence, [1, 2, 3], correct=rng.random((2000, 3)) < confidence
    )
    data.save(tmp_path / "table.npz")
    flags = f"--table {tmp_path}/table.npz --output {tmp_path}/held.json --seeds 2"
    run("held_budgets.py", *f"{flags} --images 500 --under-way 32".split())
    found = json.loads((tmp_path / "held.json").read_text())
    assert [row["hardness"] for row in found["rows"]] == [-1, 0, 1, 2]
    off = [row["fixed_off"] for row in found["rows"]]
    assert off == sorted(off) and off[0] < 0 < off[-1]
    for row in found["rows"]:
        assert row["held_off_most"] < 0.02 and abs(row["held_off"]) < 0.02


@pytest.mark.slow
def test_load(exported):  # noqa: F811
    """Clients that share a stream, and visitors of the page, get their own answers."""
    from benchmarks import load

    found = export.load(exported)
    options = types.SimpleNamespace(batch=4)
    shape = (8, found.image_size, found.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for kind in (load.Stream, load.Visitors):
        service = kind(found, options)
        wanted = [service.ask(image) for image in images]
        row = load.attack(service, images, wanted, clients=3, seconds=1.5)
        service.close()
        assert row["wrong"] == 0 and row["images"] >= 3
        assert 0 < row["median_ms"] <= row["percentile_99_ms"]
