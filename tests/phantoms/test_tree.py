import pytest

from jaxcxr.phantoms.tree import write_tree


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxcxr.phantoms.tree.draw", fail)
    with pytest.raises(KeyboardInterrupt):
        write_tree(tmp_path / "tree", 2, 64)
    assert not list(tmp_path.iterdir())
