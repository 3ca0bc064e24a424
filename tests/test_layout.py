"""The import direction as a test: no module imports one of a higher layer."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = [  # lower never imports higher
    {
        "__init__",
        "receptive_field",
        "files",
        "flops",
        "memory",
        "published",
        "photos",
    },
    {"patches", "exits"},
    {"models.layers", "stopping"},
    {
        "fitting",
        "models.anchornet",
        "models.resnet",
        "models.densenet",
        "models.mobilenet",
        "models.regnet",
    },
    {"models.multiscale"},
    {"models.__init__"},
    {"parallel"},
    {
        "attribution",
        "views",
        "preemption",
        "checkpoint",
        "demo_data",
        "decode",
    },
    {"datasets", "workdir"},
    {"data", "networks", "torch_import"},
    {"learning", "outputs", "sequence", "folding"},
    {"steps", "lanes", "sources"},
    {"export"},
    {"inference"},
    {"timing"},
    {"train", "evaluate", "scales", "plots", "results"},
    {"pictures", "gallery"},
    {"analyses", "report", "predict"},
    {"page", "pipeline"},
]
DOORS = {  # a foreign library has one door
    "tensorflow": {"data", "datasets", "decode"},
    "tensorflow_datasets": {"data", "datasets", "demo_data"},
    "orbax": {"checkpoint"},
    "clu": {"train", "outputs", "scales"},
    "optax": {"learning", "train"},
    "matplotlib": {"plots", "pictures", "gallery", "page", "demo_data"},
    "gradio": {"page"},
    "PIL": {"photos", "demo_data"},
    "torch": {"torch_import"},
    "ml_collections": set(),
}
FILES = {
    ".".join(path.relative_to(ROOT / "anchornet_jax").with_suffix("").parts): path
    for path in sorted((ROOT / "anchornet_jax").rglob("*.py"))
}


def imports(path):
    """Yield every module that a file imports, ours as `anchornet_jax.x`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
    """Return the layer-table name of an import of ours, None of any other."""
    if not name.startswith("anchornet_jax."):
        return None
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for candidate in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if candidate in FILES:
                return candidate
    return "__init__"


def test_every_module_has_a_layer():
    placed = set().union(*LAYERS)
    assert set(FILES) <= placed, sorted(set(FILES) - placed)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for name in imports(FILES[module]):
        lower = ours(name)
        if lower and lower != "__init__":
            assert level[lower] < level[module], f"{module} imports {lower}"


@pytest.mark.parametrize("module", FILES)
def test_foreign_libraries_have_one_door(module):
    for name in imports(FILES[module]):
        allowed = DOORS.get(name.split(".")[0])
        assert allowed is None or module in allowed, f"{module} imports {name}"


def test_core_needs_neither_tensorflow_nor_torch():
    """What inference imports must run where only jax and flax are installed."""
    seen, waiting = set(), ["networks", "inference", "flops", "learning", "export"]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in imports(FILES[module]):
            assert name.split(".")[0] not in {"tensorflow", "torch", "clu"}, module
            waiting += [ours(name)] if ours(name) else []
