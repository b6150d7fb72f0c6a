"""Primitives by what they do to an activation."""

from typing import Any

from stabjax._jaxpr._program import CUSTOM, JIT, body, opened

AFFINE = frozenset("add add_any sub neg mul div select_n real imag conj complex".split())
NONLINEAR = frozenset(
    "abs max min exp exp2 expm1 log log1p logistic tanh sinh cosh sin cos tan asin acos atan asinh acosh atanh atan2 "
    "erf erfc erf_inv lgamma digamma bessel_i0e bessel_i1e log2 one_minus_square pow integer_pow square "
    "sqrt rsqrt cbrt sign floor ceil round rem clamp nextafter "
    "eq ne lt le gt ge and or xor not is_finite".split()
)

# What hands entries on as they are. Several outputs belong to several operands, one by one, but those of split and
# unstack.
COPIES = frozenset("copy copy_p stop_gradient reduce_precision optimization_barrier name".split())
"""The same array, as a number."""
PLACEMENTS = frozenset("device_put sharding_constraint layout_constraint pvary pbroadcast reshard".split())
"""The same array, on other devices."""
IDENTITIES = COPIES | PLACEMENTS | {"convert_element_type"}
RESHAPES = frozenset("reshape transpose squeeze expand_dims broadcast_in_dim rev".split())
"""All entries of one array, in another shape or order."""
VIEWS = IDENTITIES | RESHAPES
PARTS = frozenset("slice split unstack dynamic_slice gather".split())
"""Some entries of one array."""
MOVES = RESHAPES | PARTS | {"pad", "tile"}
"""Entries of the first operand in other places, perhaps several times, perhaps with others between."""
SELECTIONS = PARTS | frozenset("pad tile concatenate stack dynamic_update_slice scatter".split())

SCATTERS = frozenset("scatter scatter-add scatter_add scatter-mul scatter_mul".split())
REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod".split())
SEARCHES = frozenset("reduce_or reduce_and reduce_xor argmax argmin".split())
"""Reductions whose results are no numbers of an activation."""
WINDOWS = frozenset("reduce_window reduce_window_sum reduce_window_max reduce_window_min".split())

ACTIVATIONS = frozenset(
    "relu relu6 silu swish elu selu celu leaky_relu softplus soft_sign mish gelu hard_tanh hard_sigmoid hard_silu "
    "hard_swish squareplus log_sigmoid sigmoid tanh sparse_plus sparse_sigmoid prelu".split()
)
"""Functions of `jax.nn` and Flax that are calls by that name: each is one activation, whatever stands next to it."""

_WITHIN = frozenset("broadcast_in_dim convert_element_type copy stop_gradient".split())
"""The views that an elementwise function makes of its operands."""

_REGIONS = (
    ({"integer_pow", "tanh", "mul"}, "gelu"),
    ({"pow", "tanh", "mul"}, "gelu"),
    ({"erf", "mul"}, "gelu"),
    ({"erfc", "mul"}, "gelu"),
    ({"logistic", "mul"}, "silu"),
    ({"logistic"}, "sigmoid"),
    ({"max"}, "relu"),
)


def region_label(nonlinear: frozenset[str]) -> str:
    """Name an activation by its non-affine primitives."""
    # The whole set has to fit: {erf, mul} is a gelu, {erf} alone is not.
    for primitives, label in _REGIONS:
        if nonlinear == primitives:
            return label
    return next(iter(nonlinear)) if len(nonlinear) == 1 else "activation"


def is_activation(jaxpr: Any) -> bool:
    """Return whether a program is elementwise throughout and not affine."""
    return _elementwise(jaxpr) == "nonlinear"


def _elementwise(jaxpr: Any) -> str:
    verdict = "affine"
    for equation in opened(jaxpr)[0].eqns:
        name = equation.primitive.name
        # One equation that is not elementwise decides (other); if there is none, one that is not affine (nonlinear).
        if name in JIT | CUSTOM:
            inner = _elementwise(body(equation))
        elif name in AFFINE or name in _WITHIN:
            inner = "affine"
        else:
            inner = "nonlinear" if name in NONLINEAR else "other"
        if inner == "other":
            return "other"
        verdict = "nonlinear" if inner == "nonlinear" else verdict
    return verdict
