import os

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
