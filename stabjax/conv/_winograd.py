"""Convolution with 3 x 3 kernels at stride one by Winograd's minimal filtering F(2 x 2, 3 x 3).

Each tile of 2 x 2 outputs is computed from its 4 x 4 inputs with 16 products per pair of channels where the definition
needs 36 (Lavin and Gray 2016, arXiv 1509.09308, eqs. 8 and 12)::

    Y = A' [ (G w G') * (B' d B) ] A

The 16 products of all tiles and channels are 16 matrix products; the transforms are additions. All entries are 0, 1 or
1/2, so the rounding error is that of the definition.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from stabjax.conv._geometry import Geometry, pad, strided_slice

_B = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A = ((1, 1, 1, 0), (0, 1, -1, -1))

Matrix = tuple[tuple[float | int, ...], ...]
Grid = list[list[Array]]


def _combine(coefficients: tuple[float | int, ...], terms: list[Array]) -> Array:
    """Sum terms by their coefficients; those of 0, 1 and -1 need no product."""
    scaled = [
        term if coefficient == 1 else -term if coefficient == -1 else term * coefficient
        for coefficient, term in zip(coefficients, terms, strict=True)
        if coefficient
    ]
    return sum(scaled[1:], scaled[0])


def _transform(matrix: Matrix, grid: Grid) -> Grid:
    """Compute ``matrix @ grid @ matrix.T`` for a grid of arrays."""
    # zip(*grid) runs over columns: matrix @ grid, kept as a list of its columns. The second line does the same to the
    # rows of that, hence the product with matrix.T on the other side.
    columns = [[_combine(row, list(column)) for row in matrix] for column in zip(*grid)]
    return [[_combine(row, list(line)) for row in matrix] for line in zip(*columns)]


def _transpose(matrix: Matrix) -> Matrix:
    """Transpose a matrix of coefficients."""
    return tuple(zip(*matrix))


def _tiles(geometry: Geometry) -> tuple[int, int]:
    """Count the tiles of 2 x 2 outputs along each axis, the last one perhaps cut."""
    height, width = geometry.out_size
    return -(-height // 2), -(-width // 2)


def _input_tiles(x: Array, geometry: Geometry) -> list[Array]:
    """Compute ``B' d B`` for all tiles: 16 matrices, ``(batch * tiles, in)``."""
    # Tile t covers outputs 2 t and 2 t + 1, which see inputs 2 t .. 2 t + 3: windows of 4, two apart.
    tiles = _tiles(geometry)
    # The last tile ends at padded pixel 2 (t - 1) + 3, so the padded side is 2 t + 2: with an odd output one zero more
    # than the convolution asks for.
    padding = tuple((low, 2 * t + 2 - n - low) for n, (low, _), t in zip(geometry.size, geometry.padding, tiles))
    x = lax.optimization_barrier(pad(x, padding))
    grid = [[strided_slice(x, (i, j), tiles, (2, 2)) for j in range(4)] for i in range(4)]
    return [jnp.reshape(v, (-1, geometry.in_channels)) for line in _transform(_B, grid) for v in line]


def _kernel_tiles(kernel: Array) -> list[Array]:
    """Compute ``G w G'``: 16 matrices, ``(in, out)``."""
    grid = [[kernel[i, j] for j in range(3)] for i in range(3)]
    return [u for line in _transform(_G, grid) for u in line]


def forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolve: one matrix product for each of the 16 places of a tile, over all tiles and channels."""
    inputs = lax.optimization_barrier(_input_tiles(x, geometry))
    kernels = lax.optimization_barrier(_kernel_tiles(kernel))
    tiles = _tiles(geometry)
    shape = (geometry.batch, *tiles, geometry.out_channels)
    # (batch * tiles, in) @ (in, out), 16 times.
    products = [jnp.reshape(v @ u, shape) for v, u in zip(inputs, kernels, strict=True)]
    outputs = _transform(_A, [products[4 * i : 4 * i + 4] for i in range(4)])
    # (batch, tiles_y, 2, tiles_x, 2, out) -> (batch, 2 tiles_y, 2 tiles_x, out), cut to the output.
    y = jnp.stack([jnp.stack(line, 3) for line in outputs], 2)
    y = jnp.reshape(y, (geometry.batch, 2 * tiles[0], 2 * tiles[1], geometry.out_channels))
    return y[:, : geometry.out_size[0], : geometry.out_size[1]]


def kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """Compute the gradient of the kernel, ``G' [ (B' d B) (A g A') summed over tiles ] G``."""
    tiles = _tiles(geometry)
    g = lax.optimization_barrier(pad(g, tuple((0, 2 * t - n) for t, n in zip(tiles, geometry.out_size))))
    # Outputs that only fill up the last tile have gradient zero. grid[i][j] is output (i, j) of every tile.
    split = jnp.reshape(g, (geometry.batch, tiles[0], 2, tiles[1], 2, geometry.out_channels))
    grid = [[split[:, :, i, :, j] for j in range(2)] for i in range(2)]
    outputs = [jnp.reshape(m, (-1, geometry.out_channels)) for line in _transform(_transpose(_A), grid) for m in line]
    inputs = lax.optimization_barrier(_input_tiles(x, geometry))
    outputs = lax.optimization_barrier(outputs)
    # Each transform is linear, so the gradient takes their transposes: A' becomes A, and G becomes G'. The 16 products
    # (tiles, in)' (tiles, out) sum over all tiles of the batch.
    over_tiles = (((0,), (0,)), ((), ()))
    products = [lax.dot_general(v, m, over_tiles) for v, m in zip(inputs, outputs, strict=True)]
    taps = _transform(_transpose(_G), [products[4 * i : 4 * i + 4] for i in range(4)])
    return jnp.stack([jnp.stack(line) for line in taps])
