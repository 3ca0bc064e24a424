import os
import pathlib
import subprocess
import sys

import pytest

from anchornet_jax.runtime import files, workdir

CONFIG = {"epochs": 1.0, "data": {"name": "plates"}, "boundaries": (0.3, 0.6)}


def test_same_config_again(tmp_path):
    for _ in range(2):
        assert workdir.claim(tmp_path / "a" / "run", CONFIG) == tmp_path / "a" / "run"


def test_another_config(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    changed = {**CONFIG, "data": {"name": "imagenette"}}
    with pytest.raises(
        ValueError, match=r"config.data.name: 'plates' there, 'imagenette' now"
    ):
        workdir.claim(tmp_path, changed)


def test_foreign_directory(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds files but no config.json"):
        workdir.claim(tmp_path, CONFIG)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_not_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`workdir` is "):
        workdir.claim(tmp_path / "file", CONFIG)


def test_finish(tmp_path):
    assert workdir.finished(tmp_path) is None
    workdir.finish(tmp_path, {"accuracy": 0.5})
    assert workdir.finished(tmp_path) == {"accuracy": 0.5}


def test_written_whole_or_not_at_all(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"b": object()})
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_changed_file_is_noticed(tmp_path):
    """Any flipped bit of what is read back is an error that names the file."""
    path = tmp_path / "a.json"
    files.write_sealed(path, {"best": 0.5, "names": ["cat", "dög"], "empty": {}})
    assert files.read_sealed(path) == {
        "best": 0.5,
        "names": ["cat", "dög"],
        "empty": {},
    }
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = files.read_sealed(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # white space
            assert found == {"best": 0.5, "names": ["cat", "dög"], "empty": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is none of this project's files"),
        ("[1]", "is none of this project's files"),
        ("{", "cannot be read: "),
        ("\xff", "cannot be read: "),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=f"result.json {message}"):
        workdir.finished(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "/etc/passwd", "../other", 5, "a\\b"])
def test_names_that_leave_the_directory(name):
    with pytest.raises(ValueError, match="is no name of a file in its directory"):
        files.plain_name(name)


HOLD = """
import sys, time
from anchornet_jax.runtime import workdir
workdir.claim(sys.argv[1], {"epochs": 1})
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Start another process that works in the directory; yield it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_process_works_in_a_directory(tmp_path, other):
    """Its lock ends when it is killed, and what it had begun to write goes."""
    message = f"in which process {other.pid} on .* is working; wait for its end"
    with pytest.raises(ValueError, match=message):
        workdir.claim(tmp_path, {"epochs": 1})
    with files.whole(tmp_path / "a.json") as file:
        left = pathlib.Path(file.name).name
        assert left.startswith(".a.json.") and left.endswith(files.PARTIAL)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / left).touch()
    other.kill()
    other.wait()
    workdir.claim(tmp_path, {"epochs": 1})
    assert not (tmp_path / "sub" / left).exists()


def test_locks_are_released(tmp_path):
    """A program that has ended in this process leaves the directory to others."""
    with workdir.released():
        workdir.claim(tmp_path, CONFIG)
        workdir.claim(tmp_path, CONFIG)
    done = subprocess.run(
        [sys.executable, "-c", HOLD.replace("100", "0"), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "another config" in done.stderr and "is working" not in done.stderr


def test_a_moved_directory(tmp_path, monkeypatch):
    """Paths beside it are kept relative; another spelling is the same directory."""
    config = CONFIG | {"init_from": str(tmp_path / "other" / "network")}
    workdir.claim(tmp_path / "run", config)
    monkeypatch.chdir(tmp_path)
    workdir.claim("./run/../run", config)
    (tmp_path / "new").mkdir()
    os.rename(tmp_path / "run", tmp_path / "new" / "run")
    moved = CONFIG | {"init_from": str(tmp_path / "new" / "other" / "network")}
    workdir.claim(tmp_path / "new" / "run", moved)
    assert workdir.read_config("new/run")["init_from"] == "new/other/network"
    with pytest.raises(ValueError, match="config.init_from"):
        workdir.claim(tmp_path / "new" / "run", config)


@pytest.mark.parametrize(
    "change", [{"log_every_steps": 7}, {"data": {"name": "plates", "data_dir": "/x"}}]
)
def test_changes_that_do_not_matter(tmp_path, change):
    config = CONFIG | {
        "log_every_steps": 1,
        "data": {"name": "plates", "data_dir": ""},
    }
    workdir.claim(tmp_path, config)
    workdir.claim(tmp_path, config | change)
