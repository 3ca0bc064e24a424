"""The rooms as a test: imports go down only, and a foreign library has one door."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = [  # a room imports itself and the rooms of lower floors
    {"models"},
    {"runtime"},
    {"methods", "data"},
    {"inference", "training"},
    {"figures"},
    {"programs"},
]
DOORS = {
    "tensorflow": {"data.loading", "data.datasets", "data.decode", "data.folders"},
    "tensorflow_datasets": {
        "data.folders",
        "data.loading",
        "data.datasets",
        "data.plates",
        "data.fod_a",
        "data.megapixel",
    },
    "orbax": {"runtime.checkpoint"},
    "clu": {"training.train", "data.collect", "programs.table_3_2020"},
    "optax": {
        "training.objectives",
        "training.optimizers",
        "training.train_step",
        "training.train",
    },
    "matplotlib": {
        "figures.plots",
        "figures.pictures",
        "figures.figures_2020",
        "figures.comparison",
        "programs.page",
        "data.plates",
    },
    "gradio": {"programs.page"},
    "PIL": {"data.photos", "data.plates", "data.megapixel"},
    "torch": set(),
    "ml_collections": set(),
}
WITHOUT_JAX = {"inference.exit_table", "inference.stopping", "inference.fitting"}
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
    """Return the module of ours that an import names, None for any other."""
    if not name.startswith("anchornet_jax."):
        return None
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for candidate in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if candidate in FILES:
                return candidate
    return "__init__"


def imported(module):
    """Return the modules of ours that one imports."""
    return {ours(name) for name in imports(FILES[module])} - {None, "__init__"}


def test_every_module_is_in_a_room():
    rooms = set().union(*FLOORS)
    assert {module.partition(".")[0] for module in FILES} == rooms | {"__init__"}


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    room = module.partition(".")[0]
    for lower in imported(module):
        other = lower.partition(".")[0]
        assert other == room or floor[other] < floor[room], f"{module} imports {lower}"


def test_no_module_needs_one_that_needs_it():
    graphlib.TopologicalSorter({name: imported(name) for name in FILES}).prepare()


@pytest.mark.parametrize("module", FILES)
def test_foreign_libraries_have_one_door(module):
    for name in imports(FILES[module]):
        allowed = DOORS.get(name.split(".")[0])
        assert allowed is None or module in allowed, f"{module} imports {name}"


def needed(*modules):
    """Return what these modules import, and what that imports, with foreign names."""
    seen, foreign, waiting = set(), set(), list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            foreign |= {name.split(".")[0] for name in imports(FILES[module])}
            waiting += imported(module)
    return foreign


def test_core_needs_neither_tensorflow_nor_torch():
    """What inference imports must run where only jax and flax are installed."""
    foreign = needed("inference.engine", "inference.export", "training.train_step")
    assert not foreign & {"tensorflow", "tensorflow_datasets", "torch", "clu"}


def test_decisions_need_no_jax():
    assert not needed(*WITHOUT_JAX) & {"jax", "flax"}
