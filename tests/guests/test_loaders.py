"""Loaders of PyTorch and Grain as images of the probe."""

import grain
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from stabjax import probe
from stabjax.probe import _checkpoint, _plan
from tests.probe.test_run import BATCH, KEY, N, close, measure
from tests.probe.test_stability import DEFORMATION, SIDE, network

pytestmark = pytest.mark.usefixtures("relaxed_promotion")
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(pixels):
    floats = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    with np.errstate(all="raise"):
        return measure(floats)


def torch_loader(pixels, **options):
    """Make a loader of channels-first tensors and labels, as torchvision's sets give them."""
    tensors = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy()), torch.arange(len(pixels))
    return DataLoader(TensorDataset(*tensors), batch_size=10, **options)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "multiprocessing_context": "spawn"}])
def test_a_loader_of_torch(pixels, expected, options):
    loader = torch_loader(pixels, **options)
    close(measure(loader, images_layout="channels_first", normalize=(MEAN, DEVIATION)), expected)


def test_a_loader_of_torch_passes_twice(pixels):
    options = {"images_layout": "channels_first", "normalize": (MEAN, DEVIATION), "radius": "mean"}
    wanted = measure(pixels, **(options | {"images_layout": "channels_last"}))
    close(measure(torch_loader(pixels), **options), wanted)


def test_tensors_as_a_whole_and_in_half_precision(pixels, expected):
    floats = (torch.from_numpy(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    close(measure(floats.requires_grad_()), expected)
    half = floats.detach().to(torch.bfloat16)
    found = probe.stability(
        lambda x: x.astype("float32").mean((1, 2)),
        iter(half.split(9)),
        key=KEY,
        deformation=DEFORMATION,
        batch_size=BATCH,
    )
    assert found.valid.all()


def compare(images, measure, **options):
    settings = {"measure": measure, "units": "average", "batch_size": BATCH, "memory": 1e-9}
    return probe.similarity(network(), network(), images, **settings, **options)


@pytest.mark.parametrize("measure", ["cka_debiased", "cca"])
def test_layers_are_compared_on_a_loader_of_torch(pixels, measure):
    options = {"images_layout": "channels_first", "normalize": (MEAN, DEVIATION), "select": "conv"}
    found = compare(torch_loader(pixels), measure, **options)
    expected = compare(pixels, measure, **(options | {"images_layout": "channels_last"}))
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-5)
    with pytest.raises(ValueError, match="got others in batch 0: give the same images in the same order"):
        compare(torch_loader(pixels, shuffle=True), measure, **options)


class Pairs:
    """A source of Grain: an image and its label."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __repr__(self):
        # By which Grain knows the source again.
        return f"Pairs({len(self.pixels)})"

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {"image": self.pixels[index], "label": index}


def grain_sets(pixels):
    """Return Grain's three ways to load batches."""
    chain = grain.MapDataset.source(Pairs(pixels)).batch(10)
    sampler = grain.samplers.IndexSampler(len(pixels), grain.sharding.NoSharding(), shuffle=False, num_epochs=1)
    loader = grain.DataLoader(data_source=Pairs(pixels), sampler=sampler, operations=[grain.transforms.Batch(10)])
    return {"map": chain, "iter": chain.to_iter_dataset(), "loader": loader}


@pytest.mark.parametrize("kind", ["map", "iter", "loader"])
def test_a_loader_of_grain(pixels, expected, kind):
    close(measure(grain_sets(pixels)[kind], normalize=(MEAN, DEVIATION)), expected)


class Reading:
    """A set of Grain whose iterator counts what it reads, and may die."""

    def __init__(self, dataset, after=None):
        self.dataset, self.after, self.read = dataset, after, 0

    def __iter__(self):
        self.iterator = iter(self.dataset)
        outer = self

        class Iterator:
            def __iter__(self):
                return self

            def __next__(self):
                if outer.read == outer.after:
                    raise KeyboardInterrupt
                outer.read += 1
                return next(outer.iterator)

            def get_state(self):
                return outer.iterator.get_state()

            def set_state(self, state):
                outer.iterator.set_state(state)

        return Iterator()


@pytest.mark.parametrize("kind", ["iter", "loader"])
def test_a_killed_pass_goes_on_by_the_state_of_grain(pixels, expected, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(_plan, "MOST_BATCHES", 1)
    options = {"normalize": (MEAN, DEVIATION), "path": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        measure(Reading(grain_sets(pixels)[kind], after=3), **options)
    rest = Reading(grain_sets(pixels)[kind])
    close(measure(rest, **options), expected)
    # The first batch when the source is opened, to know its shape; then from where it was.
    assert rest.read <= 1 + 3
