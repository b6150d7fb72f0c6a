"""`stabjax measure` of a PyTorch, a Keras and a Haiku network, and its page in a real browser."""

import html
import json
import re
import shutil
import subprocess

import jax
import keras
import numpy as np
import pytest
import safetensors.torch
import torch

import stabjax as sj
from stabjax import cli
from stabjax.cli import _model, _weight_files, _weights
from stabjax.cli._refusal import Refusal

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "unchecked")

SOURCE = '''
"""Networks of a user."""
import torch


class Net(torch.nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x.mean((2, 3)))))


def keras_network(classes=5):
    import keras

    return keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes),
        ]
    )


def haiku_network(key):
    import haiku as hk
    import jax.numpy as jnp

    def function(x):
        return hk.Linear(5)(jnp.tanh(hk.Conv2D(4, 3)(x)).mean((1, 2)))

    transformed = hk.without_apply_rng(hk.transform(function))
    return transformed, transformed.init(key, jnp.zeros((1, 8, 8, 3)))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "guests.py").write_text(SOURCE)
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(name, *arguments, seed=0):
    return _model.build(f"guests.py:{name}", arguments, seed)


def measure(network, *words):
    cli.main(["measure", f"guests.py:{network}", "--images", "images.npz", *words])
    return sj.report.read("report")


def trained(*arguments):
    """A network with weights and statistics of its own."""
    model = build("Net", *arguments, seed=7)
    model.features[1].running_mean += 0.3
    model.features[1].num_batches_tracked += 5
    return model


SAVED = {
    "w.pt": lambda model, path: torch.save(model.state_dict(), path),
    "nested.ckpt": lambda model, path: torch.save({"state_dict": model.state_dict(), "epoch": 3}, path),
    "parallel.pth": lambda model, path: torch.save(
        {f"module.{name}": value for name, value in model.state_dict().items()}, path
    ),
    "w.safetensors": lambda model, path: safetensors.torch.save_model(model, path),
    "w.npz": lambda model, path: np.savez(path, **{k: v.numpy() for k, v in model.state_dict().items()}),
}


@pytest.mark.parametrize("name", SAVED)
def test_weights_of_torch(folder, name):
    model = trained()
    SAVED[name](model, folder / name)
    found = measure("Net", "--weights", name)
    images = np.load("images.npz")["images"]
    deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (8, 8))
    options = {"key": jax.random.key(0), "deformation": deformation, "normalize": ((0,), (1,))}
    wanted = sj.probe.stability(model, images, **options)
    assert found.result.layers == wanted.layers
    assert "features.0" in wanted.layers
    np.testing.assert_array_equal(found.result.relative, wanted.relative)
    assert found.label == f"Net, {name}"
    assert found.versions["torch"] == torch.__version__


def test_half_precision(folder):
    model = trained()
    half = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    safetensors.torch.save_file(half, folder / "w.safetensors")
    loaded = build("Net")
    _weights.load_into_module(loaded, folder / "w.safetensors")
    assert loaded.head.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.head.weight, half["head.weight"].float(), rtol=0, atol=0)


def test_tied_weights_are_one_tensor(folder):
    model = build("Tied", seed=7)
    safetensors.torch.save_model(model, folder / "w.safetensors")
    assert len(_weight_files.read(folder / "w.safetensors")) == 1
    loaded = build("Tied")
    _weights.load_into_module(loaded, folder / "w.safetensors")
    torch.testing.assert_close(loaded.second.weight, model.second.weight, rtol=0, atol=0)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_wrong_weights(folder, capsys):
    torch.save(trained("classes=7").state_dict(), "shape.pt")
    torch.save(build("Tied").state_dict(), "names.pt")
    torch.save(trained(), "whole.pt")
    torch.save({"a": Evil()}, "evil.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"epoch": 3}, "empty.pt")
    (folder / "half.pt").write_bytes((folder / "shape.pt").read_bytes()[:700])
    (folder / "w.safetensors").write_bytes(b"nothing")
    for name, said in {
        "shape.pt": "have another shape (head.weight: expected (5, 4), got (7, 4); head.bias: expected (5,), got (7,))",
        "names.pt": "8 of 9 weights are missing (features.0.weight, features.0.bias, features.1.weight, ...); "
        "2 of 2 in the file are unknown to the network (first.weight, second.weight)",
        "whole.pt": "got objects that would run code when they are read: save model.state_dict()",
        "evil.pt": "got objects that would run code when they are read",
        "list.pt": "expected a state dict, tensors by name, got list",
        "empty.pt": "expected a state dict in 'empty.pt', tensors by name, got 'epoch'",
        "half.pt": "the weights 'half.pt' cannot be read",
        "w.safetensors": "the weights 'w.safetensors' cannot be read",
    }.items():
        capsys.readouterr()
        with pytest.raises(SystemExit):
            measure("Net", "--weights", name)
        printed = capsys.readouterr()
        assert said in printed.err, name
        assert printed.err.count("\n") == 1
        assert "run\n" not in printed.out


def test_weights_of_keras(folder):
    found = {}
    for seed in (7, 0):
        # Names of layers are counted: those of a new process.
        keras.utils.clear_session()
        found[seed] = sj.networks.wrap(build("keras_network", seed=seed))
    np.savez("w.npz", **_weight_files.flatten(found[7].variables))
    loaded = _weights.load_into_network(found[0], folder / "w.npz")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), found[7](x))
    assert np.abs(found[0](x) - found[7](x)).max() > 1e-3
    keras.utils.clear_session()
    assert measure("keras_network", "--weights", "w.npz").result.layers[-1] == "output"


def test_weights_of_haiku(folder):
    transformed, params = build("haiku_network", seed=7)
    np.savez("w.npz", **_weight_files.flatten(params))
    network = _weights.load_into_network(sj.networks.wrap(build("haiku_network")), folder / "w.npz")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(network(x), transformed.apply(params, x), rtol=1e-6)
    with pytest.raises(Refusal, match="are missing"):
        _weights.load_into_network(sj.networks.wrap(build("keras_network")), folder / "w.npz")


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=2000""".split()


FRAME = """<!DOCTYPE html><meta charset="utf-8"><title>a frame</title>
<script>addEventListener("message", event => {{
  const output = document.createElement("output");
  output.textContent = event.data;
  document.body.append(output);
}});</script>
<iframe src="page.html" width="{width}" height="800" style="border: 0"></iframe>"""
"""A window has a smallest width, larger than that of a phone; a frame has none."""


@pytest.fixture
def browse(tmp_path):
    """Open a page in a frame of some width in a browser; return what its scripts send to the frame."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser found (looked for {', '.join(BROWSERS)}): the page is not opened")

    def run(text, width):
        (tmp_path / "page.html").write_text(text)
        (tmp_path / "frame.html").write_text(FRAME.format(width=width))
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [program, *FLAGS, profile, "--window-size=1400,900", "--dump-dom", (tmp_path / "frame.html").as_uri()]
        dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        return json.loads(html.unescape(re.search(r"<output>(.*?)</output>", dumped, re.DOTALL).group(1)))

    return run


SCRIPT = """<script>
const log = [];
addEventListener("error", event => log.push(event.message));
addEventListener("securitypolicyviolation", event => log.push(event.violatedDirective));
addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const heads = [...table.tHead.rows[0].cells];
  const column = k => [...table.tBodies[0].rows].map(row => row.cells[k].dataset.value ?? row.cells[k].textContent);
  const found = {before: column(0), errors: log};
  heads.forEach((head, k) => {
    head.querySelector("button").focus();
    found[`focus ${k}`] = document.activeElement === head.querySelector("button");
    document.activeElement.click();
    found[`first ${k}`] = [head.getAttribute("aria-sort"), column(k)];
    document.activeElement.click();
    found[`second ${k}`] = [head.getAttribute("aria-sort"), column(k)];
  });
  found.sorted = heads.map(head => head.getAttribute("aria-sort"));
  const field = document.querySelector("input[type=search]");
  field.value = "CONV";
  field.dispatchEvent(new Event("input"));
  found.shown = [...table.tBodies[0].rows].filter(row => !row.hidden).length;
  document.querySelectorAll("rect.column")[1].dispatchEvent(new Event("pointerenter"));
  found.readout = document.getElementById("readout").textContent;
  found.width = innerWidth;
  found.wide = document.documentElement.scrollWidth > innerWidth;
  found.images = [...document.images].map(image => image.naturalWidth);
  top.postMessage(JSON.stringify(found), "*");
});
</script></head>"""


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_in_a_browser(folder, browse, width):
    found = measure("Net")
    text = (folder / "report" / "index.html").read_text().replace("</head>", SCRIPT, 1)
    seen = browse(text, width)
    layers, result = list(found.result.layers), found.result
    assert seen["errors"] == []
    assert seen["width"] == width
    assert seen["before"] == [str(k) for k in range(len(layers))]
    assert all(seen[f"focus {k}"] for k in range(7))
    # The column of the order is sorted at first: its first click turns it round.
    assert seen["first 0"] == ["descending", seen["before"][::-1]]
    assert seen["first 1"] == ["ascending", sorted(layers, key=str.lower)]
    for column, name in ((3, "deformation"), (4, "noise"), (5, "relative")):
        for click, direction, sign in (("first", "ascending", 1), ("second", "descending", -1)):
            said, values = seen[f"{click} {column}"]
            assert said == direction
            np.testing.assert_allclose(
                np.array(values, float), sign * np.sort(sign * np.asarray(getattr(result, name))), rtol=1e-6
            )
    assert seen["sorted"] == ["none"] * 6 + ["descending"]
    assert seen["shown"] == sum("conv" in f"{layer} {kind}" for layer, kind in zip(layers, result.kinds, strict=True))
    assert seen["readout"].splitlines()[0] == f"{layers[1]} ({result.kinds[1]})"
    assert not seen["wide"], "the page is wider than the window"
    assert len(seen["images"]) == 12
    assert all(seen["images"])
