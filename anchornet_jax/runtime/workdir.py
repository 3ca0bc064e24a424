"""A run's directory: who owns it, and whether it is finished.

`config.json` says which run a directory holds, `result.json` that it is finished. A
directory is never shared by two configs: what is in it could no longer be told apart.
Keys that do not matter to the result may change when a run is resumed, and the whole may
be moved: paths beside the run's directory are kept relative to it. Of several hosts
process 0 alone reads and writes these files.
"""

import json
import os
import pathlib
import re

import jax

from anchornet_jax.runtime import files, parallel

CONFIG, RESULT = "config.json", "result.json"
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

    Raises:
      ValueError: if it cannot be written, holds a run of another config (the keys that
        differ are listed, without those that do not matter) or holds files but no run.
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
    try:
        config = json.loads((path / CONFIG).read_text())
        return _mapped(config, lambda text: _from(path, text))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path / CONFIG} is no config of a run: {error}") from None


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
        if (path / CONFIG).exists():
            _compare(path, json.loads((path / CONFIG).read_text()), config)
        elif any(not item.name.startswith(".") for item in path.iterdir()):
            raise ValueError(
                f"`workdir` is {str(path)!r}, which holds files but no {CONFIG}; "
                "give a new or empty directory, or that of a run to be resumed"
            )
        else:
            files.write_json(path / CONFIG, config)
    except OSError as error:
        raise ValueError(f"`workdir` is {str(path)!r}: {error}") from error


def finished(workdir) -> dict | None:
    """Return the result of a finished run, None of any other.

    The hosts meet here: what process 0 wrote before, all of them find.
    """
    path = pathlib.Path(workdir) / RESULT
    return parallel.from_first(
        lambda: json.loads(path.read_text()) if path.exists() else None
    )


def finish(workdir, result: dict) -> None:
    """Write the result, which marks the run as finished."""
    if jax.process_index() == 0:
        files.write_json(pathlib.Path(workdir) / RESULT, result)


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
