"""What the README says to type exists: configs, keys, flags, make targets, snippets."""

import ast
import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest
from absl import flags

from anchornet_jax import models
from anchornet_jax.inference import folding
from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import networks
from anchornet_jax.training import train
from configs import common
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SHELL = "\n".join(text for kind, text in BLOCKS if kind == "bash")
SHELL = SHELL.replace("\\\n", " ")


def commands(program):
    """Return the arguments of each line of the README that runs a program."""
    lines = [shlex.split(line, comments=True) for line in SHELL.splitlines()]
    return [line[len(program) :] for line in lines if line[: len(program)] == program]


TABLE = [
    row.split() for row in re.findall(r"^\| `(configs/\S+ [^`]*)`", TEXT, re.MULTILINE)
]
MAIN = [
    *([f"--config={file}", *rest] for file, *rest in TABLE),
    *commands(["python", "main.py"]),
]


def load(value):
    """Return the config that `--config=value` gives, locked as main.py locks it."""
    path, _, argument = value.partition(":")
    assert (ROOT / path).is_file(), path
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return module.get_config(*[argument] if argument else []).lock()


def parsed(arguments):
    """Return {flag: value}."""
    return dict(
        argument.removeprefix("--").partition("=")[::2] for argument in arguments
    )


@pytest.mark.parametrize("arguments", MAIN, ids=" ".join)
def test_command_is_understood(arguments):
    import main  # noqa: F401, which defines the flags

    given = parsed(arguments)
    if given["config"] == "...":
        config = common.get_config()
    else:
        config = load(given["config"])
    assert "workdir" in given or config.program == "predict"
    for name, value in given.items():
        if not name.startswith("config."):
            assert name in flags.FLAGS, name
            continue
        *parts, key = name.removeprefix("config.").split(".")
        place = config
        for part in parts:
            place = place[part]
        kind = type(place[key])  # an unknown key raises
        if kind in (int, float):
            kind(value)


def test_commands_were_found():
    assert len(MAIN) > 10 and len(TABLE) > 7


def test_other_files_and_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = re.findall(r"^make (\w+)", SHELL, re.MULTILINE)
    assert asked and set(asked) <= set(targets)
    for path in re.findall(r"\b(?:benchmarks|configs|tests|colab)/[\w/]+\.\w+", TEXT):
        assert (ROOT / path).is_file(), path


def snippets():
    """Return the README's Python, to be run where `runs/demo` is."""
    return [text for kind, text in BLOCKS if kind == "python"]


@pytest.mark.parametrize("text", snippets())
def test_snippet_uses_what_exists(text):
    """Every name taken from one of our modules is there."""
    tree, ours = ast.parse(text), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("anchornet_jax"):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                ours[alias.asname or alias.name] = importlib.import_module(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in ours:
            assert hasattr(ours[node.value.id], node.attr), ast.unparse(node)


def test_own_backbone(data_dir, tmp_path, monkeypatch):
    (text,) = [text for text in snippets() if "pipeline.run(" in text]
    given = []
    monkeypatch.setattr(pipeline, "run", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    exec(compile(text, "README.md", "exec"), {"__name__": "mine"})  # noqa: S102, ours
    ((config, _),) = given
    assert config.stages.patch.model == "mine"
    result = train.train(tiny.config(data_dir, model="mine", epochs=0.25), tmp_path)
    network = networks.load(result["network"])
    assert type(network.model).__name__ == "Mine"
    folded = folding.fold(network, 95)
    logits, _ = folded.model.apply(folded.variables, np.zeros((2, 95, 95, 3)))
    assert logits.shape == (2, 10)
