"""The facts of values: what depends on the images, which parameters it is computed from, the roles of its axes."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from stabjax import features, networks
from stabjax._jaxpr import _axes
from stabjax._jaxpr._facts import analyze
from stabjax._jaxpr._plan import TapPlan
from tests.recognition import PARAMETERS, average, first_layer, layer_norm
from tests.sample_networks import IMAGES, conv

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def graph_of(f):
    network = networks.wrap(jax.tree_util.Partial(f, PARAMETERS))
    program = features.trace(network, jax.ShapeDtypeStruct(IMAGES, jnp.float32)).program.program
    return analyze(TapPlan(program.jaxpr, program.consts), program.paths, "")


def roles(value):
    """The roles of the axes in one word: batch, space, channels, new; ``-`` where it is not known."""
    return "".join(_axes.role(axis) or "-" for axis in value.axes)


AXES = {
    "images": (lambda p, x: x * 2, "bssc"),
    "convolution": (first_layer, "bssc"),
    "channels first": (
        lambda p, x: lax.conv_general_dilated(x.transpose(0, 3, 1, 2), p["conv"]["kernel"].T, (1, 1), "SAME"),
        "bcss",
    ),
    "merged space": (lambda p, x: x.reshape(2, 64, 3), "bsc"),
    "all merged": (lambda p, x: x.reshape(2, -1), "b-"),
    "space in front": (lambda p, x: x.transpose(1, 2, 0, 3).reshape(64, 2, 3).transpose(1, 0, 2), "bsc"),
    "heads": (lambda p, x: (x @ p["dense"]["kernel"]).reshape(2, 64, 2, 2), "bscc"),
    "dense": (lambda p, x: x.mean((1, 2)) @ p["dense"]["kernel"], "bc"),
    "product of activations": (lambda p, x: jnp.einsum("bhwc,bhvc->bhwv", x, x), "bsss"),
    "reduced": (lambda p, x: x.max((1, 2)), "bc"),
    "repeated": (lambda p, x: jnp.broadcast_to(x.mean((1, 2))[:, None, None], x.shape), "bnnc"),
    "repeated positions": (lambda p, x: jnp.repeat(x, 2, 1), "bssc"),
    "repeated positions, apart again": (lambda p, x: jnp.repeat(x, 2, 1).reshape(2, 8, 2, 8, 3), "bsssc"),
    "tokens of branches": (lambda p, x: jnp.stack([x, x], 1).reshape(2, 16, 8, 3), "bssc"),
    "best known operand": (lambda p, x: average(x, (1, 2)) * x, "bssc"),
    "windows": (lambda p, x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"), "bssc"),
    "cut": (lambda p, x: x[:, 1:, ::2], "bssc"),
    "stacked": (lambda p, x: jnp.stack([x, x * 2], 1), "bnssc"),
    "joined": (lambda p, x: jnp.concatenate([x, x], 3), "bssc"),
    "looked up": (lambda p, x: x[:, jnp.array([0, 2, 2])], "bssc"),
    "looked up by two axes": (lambda p, x: x[:, jnp.array([0, 2]), jnp.array([1, 3])], "bsc"),
    "channels looked up": (lambda p, x: x[..., jnp.array([2, 1, 0])], "bssc"),
    "indices in front": (lambda p, x: x.transpose(1, 2, 3, 0)[jnp.array([0, 2])], "sscb"),
    "looked up for each image": (
        lambda p, x: jnp.take_along_axis(x, jnp.argmax(x, 1, keepdims=True), 1),
        "bnsc",
    ),
    "position of the largest": (lambda p, x: jnp.argmax(x, 1), "bsc"),
    "any of the channels": (lambda p, x: jnp.any(x > 0, -1), "bss"),
    "attention map": (
        lambda p, x: (lambda y: jnp.einsum("bqnc,bknc->bnqk", y, y))((x @ p["dense"]["kernel"]).reshape(2, 64, 2, 2)),
        "bnss",
    ),
    "without a rule": (lambda p, x: jnp.sort(x, 1), "bssc"),
    "scanned": (lambda p, x: lax.scan(lambda h, w: (h * w, h), x, p["layers"]["steps"])[1].swapaxes(0, 1), "bsssc"),
    "custom call": (lambda p, x: jax.nn.relu(conv(x, p["conv"]["kernel"])), "bssc"),
}


@pytest.mark.parametrize("name", AXES)
def test_axes(name):
    f, expected = AXES[name]
    (output,) = graph_of(f).outputs
    assert output.active
    assert roles(output) == expected


def test_parameters_and_activity():
    def network(p, x):
        kernel = p["conv"]["kernel"] * lax.rsqrt(p["slope"] + 1)
        inner = jax.jit(lambda k: k * p["mix"]["kernel"][0])(kernel)
        return jnp.tanh(conv(x, inner)), x[:, :1, :1] * 0 + p["norm"]["mean"][..., :3]

    graph = graph_of(network)
    assert not graph.is_nested
    assert graph.has_paths
    assert all(output.active and not output.parameters for output in graph.outputs)
    (layer,) = [node for node in graph.nodes if node.name == "conv_general_dilated"]
    assert layer.parameters == {"conv/kernel", "slope", "mix/kernel"}
    assert [value.active for value in layer.operands] == [True, False]
    assert [node.name for node in graph.nodes if node.active][:2] == ["conv_general_dilated", "tanh"]


def test_what_a_scan_carries_becomes_active_one_after_another():
    def network(p, x):
        start = (x, jnp.zeros(IMAGES), jnp.zeros(IMAGES), p["color"]["gain"])
        step = lambda c, w: ((c[0] * w, c[0], c[1], c[3] * w), c[3])  # noqa: E731
        (_, late, later, gain), gains = lax.scan(step, start, p["layers"]["steps"])
        return late, later, x * gain, x * gains[0]

    graph = graph_of(network)
    (scan,) = [node for node in graph.nodes if node.name == "scan"]
    assert [value.active for value in scan.results] == [True, True, True, False, False]
    assert scan.results[3].parameters == {"color/gain", "layers/steps"}


MIXED = {
    "none": (lambda p, x: layer_norm(first_layer(p, x)), []),
    "batch statistics": (lambda p, x: x - average(x, (0, 1, 2)), ["reduce_sum"]),
    "gram": (lambda p, x: x.reshape(2, -1) @ x.reshape(2, -1).T, ["dot_general"]),
    "running sum": (lambda p, x: jnp.cumsum(x, 0), ["cumsum"]),
    "sorted": (lambda p, x: jnp.sort(x, 0), ["sort"]),
    "reversed": (lambda p, x: x + x[::-1], ["rev"]),
    "in a call": (lambda p, x: jax.checkpoint(lambda y: y - average(y, 0))(x), ["reduce_sum"]),
    "carried from image to image": (lambda p, x: lax.scan(lambda c, y: (c + y, c), x[0] * 0, x)[1], ["scan"]),
    "one image after another": (lambda p, x: lax.map(jnp.tanh, x), []),
}


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_are_mixed(name):
    f, expected = MIXED[name]
    assert graph_of(f).mixed_rows == expected
