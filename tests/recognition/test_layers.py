"""The kinds ``conv`` and ``dense``: what is a layer, what is its bias, where its name comes from."""

import jax.numpy as jnp
import pytest
from jax import lax

from tests.recognition import average, first_layer, recognized
from tests.sample_networks import conv

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

CONV = {
    "alone": (first_layer, "conv=conv"),
    "with its bias": (lambda p, x: first_layer(p, x) + p["conv"]["bias"], "conv=conv"),
    "bias in front": (lambda p, x: p["conv"]["bias"] + first_layer(p, x), "conv=conv"),
    "bias subtracted": (lambda p, x: first_layer(p, x) - p["conv"]["bias"], "conv=conv conv:1=other"),
    "bias behind a negation": (lambda p, x: -first_layer(p, x) + p["conv"]["bias"], "conv=conv conv:1=other"),
    "bias behind numbers": (lambda p, x: first_layer(p, x) * 0.5 + 1.0 + p["conv"]["bias"], "conv=conv"),
    "bias behind a view": (
        lambda p, x: first_layer(p, x).reshape(2, -1, 4) + p["conv"]["bias"].reshape(1, 1, 4),
        "conv=conv",
    ),
    "bias of another module": (lambda p, x: first_layer(p, x) + p["dense"]["bias"], "conv=conv"),
    "two biases": (lambda p, x: first_layer(p, x) + p["conv"]["bias"] + p["dense"]["bias"], "conv=conv dense=other"),
    "a scale is none of its own": (
        lambda p, x: first_layer(p, x) * p["conv"]["gain"] + p["conv"]["bias"],
        "conv=conv conv:1=other",
    ),
    "used twice, with a bias each": (
        lambda p, x: (lambda y: (y + p["conv"]["bias"]) * jnp.tanh(y + p["dense"]["bias"]))(first_layer(p, x)),
        "conv=conv dense=activation",
    ),
    "normalized kernel": (
        lambda p, x: conv(x, p["conv"]["kernel"] * lax.rsqrt((p["conv"]["kernel"] ** 2).sum((0, 1, 2)))),
        "conv=conv",
    ),
    "kernel of two modules": (lambda p, x: conv(x, p["conv"]["kernel"] * p["slope"]), "conv=conv"),
    "kernel made of images": (
        lambda p, x: conv(x, average(x, (0, 1, 2)) * p["conv"]["kernel"][..., 0, None]),
        "convolution_0=other",
    ),
}

DENSE = {
    "alone": (lambda p, x: x @ p["dense"]["kernel"], "dense=dense"),
    "with its bias": (lambda p, x: x @ p["dense"]["kernel"] + p["dense"]["bias"], "dense=dense"),
    "kernel in front": (lambda p, x: p["dense"]["kernel"].T @ x.reshape(2, -1, 3).transpose(0, 2, 1), "dense=dense"),
    "bias behind a transposition": (
        lambda p, x: (x @ p["dense"]["kernel"]).transpose(0, 3, 1, 2) + p["dense"]["bias"].reshape(1, 4, 1, 1),
        "dense=dense",
    ),
    "einsum": (lambda p, x: jnp.einsum("bhwc,cd->bdhw", x, p["dense"]["kernel"]), "dense=dense"),
    "product with numbers": (lambda p, x: x @ jnp.eye(3) + p["color"]["shift"], "product_0=other color=other"),
    "product of activations": (lambda p, x: jnp.einsum("bhwc,bhvc->bhwv", x, x), "product_0=other"),
}


@pytest.mark.parametrize("name", CONV)
def test_convolutions(name):
    f, expected = CONV[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", DENSE)
def test_dense_layers(name):
    f, expected = DENSE[name]
    assert recognized(f) == expected


def test_without_paths_arrays_are_parameters_and_numbers_are_not():
    assert recognized(CONV["bias of another module"][0], pathless=True) == "conv_0=conv"
    assert recognized(DENSE["product with numbers"][0], pathless=True) == "dense_0=dense"
    assert recognized(lambda p, x: x * 2 + 1, pathless=True) == ""
