"""A run's directory: who owns it, who works in it, and whether it is finished.

`config.json` says which run a directory holds, `result.json` that it is finished. A
directory is never shared by two configs: what is in it could no longer be told apart.
Keys that do not matter to the result may change when a run is resumed, and the whole may
be moved: paths beside the run's directory are kept relative to it. Of several hosts
process 0 alone reads and writes these files.

One process works in a directory at a time. Its lock is the operating system's (`flock`),
which ends with the process, however that dies; the file `.lock` says whose it is.
"""

import contextlib
import json
import os
import pathlib
import re
import socket

import jax
from absl import logging

from anchornet_jax.runtime import files, parallel

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

CONFIG, RESULT, LOCK = "config.json", "result.json", ".lock"
# What may change when a run goes on: how it reports, and where its data lies.
HARMLESS = re.compile(
    r"(stages\.\w+\.)?(log_every_steps|timing\..*|data\.(data|manual)_dir)"
)


def agree(workdir, config: dict) -> None:
    """Make sure that all hosts were started with the same directory and config.

    Raises:
      ValueError: on all of them, with what differs from process 0.
    """
    text = json.dumps({"workdir": str(workdir), "config": config})
    first, *others = (_flat(json.loads(host)) for host in parallel.exchange(text))
    lines = [
        f"  {key}: {first.get(key)!r} on process 0, {other.get(key)!r} on {process}"
        for process, other in enumerate(others, 1)
        for key in _differing(first, other)
    ]
    if lines:
        lines = "\n".join(lines)
        raise ValueError(f"the hosts were started with different arguments:\n{lines}")


def claim(workdir, config: dict) -> pathlib.Path:
    """Make `workdir` the directory of this config's run, new or to be resumed.

    The directory is locked until `released` ends, or the process.

    Raises:
      ValueError: if it cannot be written, another process works in it, it holds a run of
        another config (the keys that differ are listed, without those that do not
        matter) or holds files but no run.
    """
    path = pathlib.Path(workdir)
    config = _relative(json.loads(json.dumps(config)), path)
    parallel.from_first(lambda: _claim(path, config))
    return path


def read_config(workdir) -> dict:
    """Return the config of a run, with paths as they are from here.

    Raises:
      ValueError: if there is none.
    """
    path = pathlib.Path(workdir)
    config = files.read_sealed(path / CONFIG)
    return _mapped(config, lambda text: _from(path, text))


def _relative(config, path: pathlib.Path):
    """Return a config in which paths beside the run's directory are relative to it."""
    own = os.path.abspath(path)
    beside = os.path.dirname(own) + os.sep

    def shorten(text):
        full = os.path.abspath(text) if os.sep in text else ""
        return os.path.relpath(full, own) if full.startswith(beside) else text

    return _mapped(config, shorten)


def _from(path: pathlib.Path, text: str) -> str:
    return os.path.normpath(path / text) if text.startswith(os.pardir) else text


def _mapped(tree, function):
    if isinstance(tree, dict):
        return {key: _mapped(part, function) for key, part in tree.items()}
    return function(tree) if isinstance(tree, str) else tree


def _claim(path, config):
    try:
        path.mkdir(parents=True, exist_ok=True)
        new = not (path / CONFIG).exists()
        if new and any(not item.name.startswith(".") for item in path.iterdir()):
            raise ValueError(
                f"`workdir` is {str(path)!r}, which holds files but no {CONFIG}; "
                "give a new or empty directory, or that of a run to be resumed"
            )
        lock(path)
        if (path / CONFIG).exists():
            _compare(path, files.read_sealed(path / CONFIG), config)
        else:
            files.write_sealed(path / CONFIG, config)
        files.remove_partial(path)
    except OSError as error:
        raise ValueError(f"`workdir` is {str(path)!r}: {error}") from error


_held = {}  # {device and inode of a directory: descriptor of its lock}


def lock(workdir) -> None:
    """Make a directory and lock it for this process; one that is locked already stays so.

    Raises:
      ValueError: if another process holds it; it names host and process.
      OSError: if it cannot be written.
    """
    path = pathlib.Path(workdir)
    path.mkdir(parents=True, exist_ok=True)
    about = path.stat()
    which = about.st_dev, about.st_ino  # the same after a move
    if fcntl is None or which in _held:
        return
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise ValueError(
            f"`workdir` is {str(workdir)!r}, in which {owner or 'another process'} is "
            "working; wait for its end, or give another directory"
        ) from None
    except OSError as error:  # a disk of the network may have no locks
        logging.warning("%s is not locked: %s", path, error)
    os.ftruncate(descriptor, 0)
    os.pwrite(
        descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0
    )
    _held[which] = descriptor


@contextlib.contextmanager
def released():
    """Release, at the end, the directories that are locked meanwhile."""
    before = set(_held)
    try:
        yield
    finally:
        for which in set(_held) - before:
            os.close(_held.pop(which))


def finished(workdir) -> dict | None:
    """Return the result of a finished run, None of any other.

    The hosts meet here: what process 0 wrote before, all of them find.
    """
    path = pathlib.Path(workdir) / RESULT
    return parallel.from_first(
        lambda: files.read_sealed(path) if path.exists() else None
    )


def finish(workdir, result: dict) -> None:
    """Write the result, which marks the run as finished."""
    if jax.process_index() == 0:
        files.write_sealed(pathlib.Path(workdir) / RESULT, result)


def _compare(path, old, new):
    old, new = _flat(old), _flat(new)
    keys = [key for key in _differing(old, new) if not HARMLESS.fullmatch(key)]
    if keys:
        changes = "\n".join(
            f"  config.{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys
        )
        raise ValueError(
            f"`workdir` is {str(path)!r}, which holds a run of another config:\n"
            f"{changes}\nGive another directory, or that config to resume it."
        )


def _differing(old, new):
    return sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for n, t in tree.items() for k, v in _flat(t, f"{prefix}{n}.").items()}
