"""The kinds ``residual``, ``attention`` and ``other``: sums of two origins, softmax, gates, what has no pattern."""

import jax
import jax.numpy as jnp
import pytest

from tests.recognition import average, first_layer, recognized, taps

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

RESIDUAL = {
    "two layers": (lambda p, x: first_layer(p, x) + x @ p["dense"]["kernel"], "conv=conv dense=dense add_0=residual"),
    "a branch": (
        lambda p, x: x @ p["dense"]["kernel"] + jnp.tanh(x @ p["dense"]["kernel"] @ p["mix"]["kernel"]),
        "dense=dense dense:1=dense mix=dense tanh_0=activation add_0=residual",
    ),
    "weighted": (
        lambda p, x: 0.5 * first_layer(p, x) + 0.5 * (x @ p["dense"]["kernel"]),
        "conv=conv dense=dense add_0=residual",
    ),
    "of one origin": (lambda p, x: x + jnp.tanh(x), "tanh_0=activation"),
    "of one layer": (lambda p, x: (lambda y: y + jnp.tanh(y))(first_layer(p, x)), "conv=conv tanh_0=activation"),
    "with its bias": (
        lambda p, x: (lambda y: y + jnp.tanh(y + p["conv"]["bias"]))(first_layer(p, x)),
        "conv=conv tanh_0=activation",
    ),
    "difference": (lambda p, x: first_layer(p, x) - x @ p["dense"]["kernel"], "conv=conv dense=dense sub_0=other"),
}

SOFTMAX = {
    "softmax": (lambda p, x: jax.nn.softmax(x), "softmax_0=other"),
    "written out": (lambda p, x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), "softmax_0=other"),
    "log softmax": (lambda p, x: jax.nn.log_softmax(x @ p["dense"]["kernel"]), "dense=dense log_softmax_0=other"),
    "with a gain": (lambda p, x: jax.nn.softmax(x) * p["color"]["gain"], "softmax_0=other color=other"),
    "shifted exponential": (lambda p, x: jnp.exp(x - x.max(-1, keepdims=True)), "exp_0=activation"),
}

OTHER = {
    "gate": (
        lambda p, x: first_layer(p, x) * jax.nn.sigmoid(x @ p["dense"]["kernel"]),
        "conv=conv dense=dense sigmoid_0=activation gate_0=other",
    ),
    "squeeze and excite": (
        lambda p, x: (lambda y: y * jax.nn.sigmoid(average(y, (1, 2)) @ p["mix"]["kernel"]))(first_layer(p, x)),
        "conv=conv avg_pool_0=pool mix=dense sigmoid_0=activation gate_0=other",
    ),
    "gate of its own mean": (lambda p, x: x * jax.nn.sigmoid(average(x, (1, 2))), "mul_0=other"),
    "layer scale": (lambda p, x: first_layer(p, x) * p["conv"]["gain"], "conv=conv conv:1=other"),
    "position": (lambda p, x: x + p["color"]["shift"], "color=other"),
    "sorted": (lambda p, x: jnp.sort(x, 1) * 2, "sort_0=other"),
    "transformed": (lambda p, x: jnp.fft.fft(x, axis=1).real, "fft_0=other"),
    "clipped by another": (
        lambda p, x: jnp.clip(x, -jnp.abs(x), x @ jnp.eye(3)),
        "product_0=other activation_0=activation min_0=other",
    ),
}

ATTENTION = {
    "of a product": lambda logits, y: jax.nn.softmax(logits) @ y,
    "scaled and masked": lambda logits, y: (
        jax.nn.softmax(jnp.where(jnp.tri(64, dtype=bool), logits / jnp.sqrt(3.0), -jnp.inf)) @ y
    ),
    "rows with nothing to attend to": lambda logits, y: (
        safe_softmax(jnp.where(jnp.eye(64, dtype=bool), logits, -jnp.inf)) @ y
    ),
    "values in front": lambda logits, y: jnp.einsum("bkc,bqk->bqc", y, jax.nn.softmax(logits)),
}


def safe_softmax(x):
    """A softmax whose row is zero where all is masked, as PyTorch writes it."""
    masked = jnp.all(jnp.isneginf(x), -1, keepdims=True)
    return jnp.where(masked, 0, jax.nn.softmax(x))


@pytest.mark.parametrize("name", RESIDUAL)
def test_sums(name):
    f, expected = RESIDUAL[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(name):
    f, expected = SOFTMAX[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", OTHER)
def test_what_has_no_pattern(name):
    f, expected = OTHER[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name):
    def network(p, x):
        y = x.reshape(2, 64, 3)
        return ATTENTION[name](jnp.einsum("bqc,bkc->bqk", y, y), y)

    assert recognized(network) == "product_0=other softmax_0=other attention_0=attention"


def test_attention_without_a_product_of_activations_is_none():
    """Weights of an average that a layer computes, or that are a softmax of positions alone."""
    f = lambda p, x: jnp.einsum("bhwc,bhwd->bcd", jax.nn.softmax(x @ p["dense"]["kernel"], 1), x)  # noqa: E731
    assert recognized(f) == "dense=dense softmax_0=other product_0=other"


@pytest.mark.parametrize("heads_first", [False, True])
def test_attention_maps_have_no_channels(heads_first):
    """Queries meet keys: the heads were divided from the channels, and are no channels themselves."""

    def network(p, x):
        y = (x @ p["dense"]["kernel"]).reshape(2, 64, 2, 2)
        if heads_first:
            y = y.transpose(0, 2, 1, 3)
            return jax.nn.softmax(jnp.einsum("bnqc,bnkc->bnqk", y, y)) @ y
        weights = jax.nn.softmax(jnp.einsum("bqnc,bknc->bnqk", y, y))
        return jnp.einsum("bnqk,bknc->bqnc", weights, y).reshape(2, 64, 4)

    found = {tap.name: tap for tap in taps(network)}
    assert [found[name].shape for name in ("product_0", "softmax_0")] == [(2, 2, 64, 64)] * 2
    assert [found[name].channel_axis for name in ("product_0", "softmax_0", "attention_0")] == [None, None, 3]
