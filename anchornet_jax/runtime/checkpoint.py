"""Training states that survive a crash, and networks that stand alone, with Orbax.

    with checkpoint.Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(state)  # None, or (step, state)
        checkpoints.save(step, state, metric=accuracy)  # returns soon

Arrays are written as NumPy and load on any number and kind of devices. Orbax reads a
flipped bit without complaint; SHA-256 digests, stored beside arrays and metadata, find it.
Leaves have at least one element; of a typed random key, save its `jax.random.key_data`.

With several processes, process 0 alone touches the files. The state must be replicated;
every process calls every method, and `restore` hands all of them process 0's copy.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import operator
import os
import secrets
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

import anchornet_jax
from anchornet_jax.runtime import files, parallel

FORMAT = 2  # of what `save_variables` writes; 1 had no digest of the metadata
# What Orbax was seen to raise over full disks and damaged files.
ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
PATIENCE = 20  # tenths of a second

logger = logging.getLogger(__name__)


class Checkpoints(contextlib.AbstractContextManager):
    """The newest states of a training run and its best one, in `directory`/<step>.

    Args:
        directory: created where missing. An entry that is named like a step but is none
            is renamed to <step>.unreadable, with a warning.
        keep: how many of the newest states stay, beside the best; ValueError below 1.
    """

    def __init__(self, directory, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"`keep` is {keep!r}; it must be at least 1")
        self._directory = os.getcwd() / epath.Path(directory)  # absolute, for Orbax
        self._manager = None  # stays None in every process but 0
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._set_foreign_aside()
            metric = operator.itemgetter("metric")
            kept = [policies.LatestN(keep), policies.BestN(get_metric_fn=metric, n=1)]
            options = ocp.CheckpointManagerOptions(
                best_fn=metric,
                # `max_to_keep` would keep the best and delete the newest.
                preservation_policy=policies.AnyPreservationPolicy(kept),
                # A directory that is deleted in place looks damaged after a kill.
                todelete_subdir="deleted.orbax-checkpoint-tmp",
                create=False,
                multiprocessing_options=_alone(),
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state, *, metric: float | None = None) -> None:
        """Start to write `state` as the newest checkpoint and return.

        The arrays are copied first: the next train step may donate them. Older states
        go once this one is complete. A newest state of this very step stays as it is.

        Args:
            metric: what `restore_best` maximises; the newest of equals is the best. A
                state without one, or with one that is not finite, never is the best.

        Raises:
            ValueError: `step` is below the newest one.
            OSError: this state or the last could not be written; complete ones stay.
        """
        self.wait()
        newest = self._manager.latest_step() if self._manager else step
        if newest is not None and step < newest:
            raise ValueError(f"`step` is {step}; it must be above {newest}, the newest")
        if step == newest:
            return
        rated = metric is not None and math.isfinite(metric)
        metric = float(metric) if rated else -math.inf
        arrays = _flatten(state)
        items = ocp.args.Composite(state=ocp.args.StandardSave(_unflatten(arrays)))
        about = {"metric": metric, "arrays": _digest(arrays)}
        about[files.DIGEST] = files.digest(about)
        with _writing(self._directory):
            self._remove_leftovers()
            self._manager.save(int(step), args=items, metrics=about)

    def restore(self, template):
        """Return (step, state) of the newest intact checkpoint, or None.

        A damaged one is renamed to <step>.unreadable, with a warning, and the one
        before it is tried.

        Args:
            template: pytree with the structure and the shapes of the state, of arrays
                or `jax.ShapeDtypeStruct`; returned with NumPy arrays as leaves.

        Raises:
            ValueError: the checkpoint is intact, but its paths or shapes are not those
                of `template`.
            OSError: the last `save` failed.
        """
        return self._restore(template, best=False)

    def restore_best(self, template):
        """Do as `restore`, for the highest metric in place of the newest state."""
        return self._restore(template, best=True)

    def wait(self) -> None:
        """Block until the last `save` is complete; OSError if it failed."""
        if self._manager:
            with _writing(self._directory):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait as `wait` does, then end Orbax's threads, also after an error."""
        if self._manager:
            with _writing(self._directory), contextlib.closing(self._manager):
                self._manager.wait_until_finished()
                self._remove_leftovers()

    def __exit__(self, *_):
        self.close()

    def _restore(self, template, *, best: bool):
        self.wait()
        found = parallel.from_first(lambda: self._read_first(best))
        if found is None:
            return None
        step, arrays = found["step"], found["arrays"]
        try:
            match(arrays, template)
        except ValueError as error:
            raise ValueError(f"{self._directory}/{step}: {error}") from None
        leaves = [arrays[path] for path in _leaves(template)]
        return step, jax.tree.unflatten(jax.tree.structure(template), leaves)

    def _read_first(self, best: bool) -> dict | None:
        """Return the first intact checkpoint; set the damaged ones before it aside."""
        about = {s: self._manager.metrics(s) for s in self._manager.all_steps()}
        order = {step: (best and about[step]["metric"], step) for step in about}
        for step in sorted(order, key=order.get, reverse=True):
            if best and about[step]["metric"] == -math.inf:
                break
            path = self._directory / str(step)
            try:
                return {"step": step, "arrays": _read(path / "state", about[step])}
            except ERRORS as error:
                self._set_aside(path, error)
                self._manager.reload()
        return None

    def _remove_leftovers(self) -> None:
        for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
            path.rmtree()

    def _set_foreign_aside(self) -> None:
        # Orbax takes every directory named by a number for a checkpoint, counts it
        # among the newest, and fails to start over damaged metrics; a changed one would
        # make another state the best.
        for path in self._directory.iterdir():
            if path.name.isdigit():
                try:
                    about = json.loads((path / "metrics" / "metrics").read_text())
                    if about[files.DIGEST] != files.digest(about):
                        raise ValueError("its metric is not what was saved")
                except ERRORS as error:
                    self._set_aside(path, error)

    def _set_aside(self, path: epath.Path, error: Exception) -> None:
        """Rename `path`: nothing is lost, and a later save of its step works."""
        target = path.parent / f"{path.name}.unreadable"
        if target.exists():
            target.rmtree() if target.is_dir() else target.unlink()
        path.rename(target)
        message = "checkpoint %s cannot be used and was renamed to %s: %s"
        logger.warning(message, path, target.name, _reason(error))


def save_variables(directory, variables, metadata: dict) -> None:
    """Write a network's variables and what is needed to use them, or nothing at all.

    The arrays go into a new Orbax checkpoint; metadata.json, replaced last and in one
    step, names it. Killed at any moment, `directory` holds the old export or the new.

    Args:
        directory: created where missing.
        variables: nested dict of arrays, such as {"params": …, "batch_stats": …}.
        metadata: whatever JSON can hold: model name and arguments, class names, ….

    Raises:
        ValueError: JSON cannot hold `metadata`.
        OSError: writing failed: say, the disk is full. An export that was there stays.
    """
    if jax.process_index():
        return
    arrays, name = _flatten(variables), f"variables_{secrets.token_hex(4)}"
    text = _describe(arrays, name, metadata)
    directory = os.getcwd() / epath.Path(directory)
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        before = list(directory.glob("variables_*"))
        try:
            with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as orbax:
                orbax.save(directory / name, _unflatten(arrays))
            (directory / name / "metadata.json").write_text(text)
            (directory / name / "metadata.json").replace(directory / "metadata.json")
        except ERRORS:
            for path in directory.glob(f"{name}*"):
                _remove(path)
            raise
        for path in before:
            path.rmtree()


def load_variables(directory) -> tuple[dict, dict]:
    """Return the variables (nested dict of NumPy arrays) and metadata of an export.

    Raises:
        ValueError: `directory` is missing, was not written by `save_variables` or by a
            newer version of it, or its arrays are not those that were saved.
    """
    directory = os.getcwd() / epath.Path(directory)
    try:
        about = json.loads((directory / "metadata.json").read_text())
        version = int(about["format"])
    except ERRORS as error:
        problem = f"`directory` is {str(directory)!r}, not one of `save_variables`"
        raise ValueError(f"{problem} ({_reason(error)})") from None
    if version > FORMAT:
        raise ValueError(
            f"{directory} has format {version}, which is newer than what anchornet_jax"
            f" {anchornet_jax.__version__} can read (up to {FORMAT}); please update it"
        )
    try:
        if version != 1 and about[files.DIGEST] != files.digest(about):
            raise ValueError("metadata.json is not what was saved")
        about.setdefault("arrays", about[files.DIGEST])  # of format 1
        arrays = _read(directory / files.plain_name(about["variables"]), about)
        check_values(arrays)
        return _unflatten(arrays), about["metadata"]
    except ERRORS as error:
        raise ValueError(f"{directory} is damaged: {_reason(error)}") from None


def check_values(arrays: dict[str, np.ndarray]) -> None:
    """Refuse a network with values that make every image class 0, nan % sure.

    Args:
        arrays: by path, such as "params/conv1/kernel".

    Raises:
        ValueError: for one that is not finite, or a negative variance; it names it.
    """
    for path, array in arrays.items():
        numbers = np.asarray(array, np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError(f"{path} holds values that are not finite")
        if path.endswith("/var") and "batch_stats" in path and (numbers < 0).any():
            raise ValueError(f"{path} holds a negative variance")


def match(variables, template):
    """Return `variables` unchanged if `template` has the same paths and shapes.

    Both are pytrees of arrays or of `jax.ShapeDtypeStruct`, in whatever containers.

    Raises:
        ValueError: they differ. The message has a line with path and shape for all that
            only `template` has (-) and all that only `variables` has (+), by path.
    """
    found, wanted = (
        {f"{path} {list(np.shape(leaf))}" for path, leaf in _leaves(tree).items()}
        for tree in (variables, template)
    )
    if found != wanted:
        raise ValueError(
            f"`variables` do not match `template`, {len(wanted - found)} missing (-),"
            f" {len(found - wanted)} unexpected (+):"
            + "".join(f"\n{'+-'[x in wanted]} {x}" for x in sorted(found ^ wanted))
        )
    return variables


def digest(variables) -> str:
    """Return the SHA-256 of all paths, types, shapes and bytes of a tree of arrays."""
    return _digest(_flatten(variables))


def _leaves(tree) -> dict:
    """Return the leaves by path, such as "opt_state/0/trace/conv/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _flatten(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in _leaves(jax.device_get(tree)).items()}


def _unflatten(arrays: dict[str, np.ndarray]) -> dict:
    return traverse_util.unflatten_dict(arrays, sep="/")


def _describe(arrays: dict[str, np.ndarray], name: str, metadata: dict) -> str:
    """Return the text of the metadata.json that points to `arrays` in `name`."""
    libraries = ("jax", "flax", "numpy", "orbax-checkpoint")
    versions = {library: importlib.metadata.version(library) for library in libraries}
    about = {
        "format": FORMAT,
        "versions": versions | {"anchornet_jax": anchornet_jax.__version__},
        "variables": name,
        "arrays": _digest(arrays),
        "metadata": metadata,
    }
    try:
        about = json.loads(json.dumps(about))  # as it will be read: keys are text
        return json.dumps(about | {files.DIGEST: files.digest(about)}, indent=2)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` cannot be written as JSON: {error}") from None


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of all paths, types, shapes and bytes, ordered by path."""
    digest = hashlib.sha256()
    for path, array in sorted(arrays.items()):
        digest.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: epath.Path, about: dict) -> dict[str, np.ndarray]:
    """Return the arrays of the Orbax checkpoint `path`, verified with `about`."""
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as orbax:
        arrays = _flatten(orbax.restore(path))
    if _digest(arrays) != about["arrays"]:
        raise ValueError("the arrays are not those that were saved")
    return arrays


def _alone() -> ocp.options.MultiprocessingOptions:
    """Return options with which Orbax waits for no other process."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


@contextlib.contextmanager
def _writing(directory: epath.Path):
    """Turn what writing to `directory` may raise into an OSError that names it."""
    try:
        yield
    except ERRORS as error:  # Orbax has logged the traces of its threads
        raise OSError(f"{directory} could not be written: {_reason(error)}") from None


def _remove(path: epath.Path) -> None:
    """Remove a directory in which threads of a failed save may still be writing."""
    for _ in range(PATIENCE):
        with contextlib.suppress(OSError):
            return path.rmtree()
        time.sleep(0.1)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(' [tensorstore_spec')[0]}"
