"""The code in the README and on the page of docs runs as it stands."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "unchecked")


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """A folder in the official format, with a hundred test images of noise."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        content = {
            "data": rng.integers(0, 256, (100, 3072), dtype=np.uint8),
            "labels": [k % 10 for k in range(100)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    monkeypatch.setenv("STABJAX_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tiny_cifar")
@pytest.mark.parametrize("name", ["README.md", "docs/all-of-stabjax.md"])
def test_code_runs(name, capsys):
    found = blocks(ROOT / name)
    assert found
    names = {}
    for block in found:
        exec(compile(block, name, "exec"), names)
    assert "conv" in capsys.readouterr().out


def test_everything_the_readme_points_to_is_there():
    for name in ("README.md", "docs/all-of-stabjax.md"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name} points to {target}"
