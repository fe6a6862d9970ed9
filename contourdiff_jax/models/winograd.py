# SPDX-License-Identifier: Apache-2.0
"""Convolutions with 3 x 3 pixels by 16 multiplications for every four pixels instead of 36.

F(2 x 2, 3 x 3) of Lavin & Gray 2016 (arXiv 1509.09308, section 4.1): a picture is cut into tiles d
of 4 x 4 pixels, each of which begins two pixels after the one before and gives 2 x 2 pixels

    y = A^T [(G k G^T) * (B^T d B)] A

of the convolution with k, where * multiplies at each of the 16 places of a tile. Over all tiles and
features that is a product of matrices for each place, which a CPU computes at its best speed, and
the rest is sums. The gradient in the kernel is the transpose, G^T [(B^T d B) * (A dy A^T)] G.

In float32 rounding errors are a few millionths of the standard deviation; bfloat16 is too coarse.
Shapes: B batch, H rows, W columns, both even, C features in, O features out, T tiles.
"""

import jax
import jax.numpy as jnp

PART = 1 << 22  # elements that are kept at once of each of the 16 places, at most: 16 MiB


# The matrices, written out as sums: a compiler would compute many small products of matrices.


def _of_tile(d0, d1, d2, d3):  # B^T
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _of_kernel(k0, k1, k2):  # G
    return k0, (k0 + k1 + k2) / 2, (k0 - k1 + k2) / 2, k2


def _of_kernel_back(u0, u1, u2, u3):  # G^T
    return u0 + (u1 + u2) / 2, (u1 - u2) / 2, (u1 + u2) / 2 + u3


def _to_pixels(m0, m1, m2, m3):  # A^T
    return m0 + m1 + m2, m1 - m2 - m3


def _to_pixels_back(y0, y1):  # A
    return y0, y0 + y1, y0 - y1, -y1


def _both_ways(matrix, grid):
    """matrix grid matrix^T, for a grid of arrays, given as rows."""
    half = zip(*(matrix(*row) for row in grid), strict=True)
    return list(zip(*(matrix(*column) for column in half), strict=True))


def value(x, kernel):
    """x [B, H, W, C], kernel [3, 3, C, O] -> [B, H, W, O], zeros beyond the border."""
    return _convolved(_padded(x), _both_ways(_of_kernel, kernel), contracted=0)


def gradients(x, kernel, gradient):
    """Gradients in x and in the kernel, for that in `value`, [B, H, W, O]."""
    # Both read it with a border, which is made once. Without the copy, the compiler would compute
    # the gradient again for every place.
    gradient = _padded(gradient)
    # Of the same picture with another border, tiles are cut again. Else the compiler would keep
    # those of the forward pass, which are four times as large as the picture, until now.
    again = jnp.pad(x, ((0, 0), (1, 1), (1, 3), (0, 0)))
    return _gradient_in_picture(kernel, gradient), _gradient_in_kernel(again, gradient)


def _gradient_in_picture(kernel, gradient):
    """The convolution with the kernel turned by 180 degrees."""
    places = _both_ways(_of_kernel, kernel)
    turned = (3, 1, 2, 0)  # a turned kernel has its places in this order
    return _convolved(gradient, [[places[i][j] for j in turned] for i in turned], contracted=1)


def _gradient_in_kernel(x, gradient):
    total = None
    columns = gradient.shape[2] - 2
    for rows in _parts(gradient):
        tiles = _places(x, rows, range(4), columns)
        pixels = _places(gradient, rows, range(1, 3), columns)
        part = _products(_both_ways(_of_tile, tiles), _both_ways(_to_pixels_back, pixels), (0, 0))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return jnp.stack([jnp.stack(row) for row in _both_ways(_of_kernel_back, total)])


def _convolved(x, places, contracted: int):
    """x [B, H + 2, W + 2, C] convolved with a kernel given as 4 x 4 matrices."""
    batch, _, columns, _ = x.shape
    done = []
    for rows in _parts(x):
        tiles = _both_ways(_of_tile, _places(x, rows, range(4), columns - 2))
        products = _products(tiles, places, (1, contracted))
        shape = (batch, len(rows) // 2, columns // 2 - 1, -1)
        pixels = [[p.reshape(shape) for p in row] for row in _both_ways(_to_pixels, products)]
        pixels = jnp.stack([jnp.stack(row, 3) for row in pixels], 2)
        done.append(pixels.reshape(batch, len(rows), columns - 2, -1))
    return jnp.concatenate(done, 1)


def _padded(x):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _parts(x) -> list[range]:
    """The rows of each part of x [B, H + 2, W + 2, C], the border not counted."""
    batch, rows, columns, features = x.shape
    height = 2 * max(1, PART // (batch * (columns // 2 - 1) * features))
    return [range(first, min(first + height, rows - 2)) for first in range(0, rows - 2, height)]


def _places(x, rows: range, offsets: range, columns: int):
    """Pixels [T, C] of x [B, H + 2, W + 2 or more, C] at these offsets from where a tile begins.

    Args:
      columns: W.
    """

    def place(i, j):
        pixels = x[:, rows.start + i : rows.stop + i : 2, j : j + columns : 2]
        return pixels.reshape(-1, x.shape[-1])

    return [[place(i, j) for j in offsets] for i in offsets]


def _products(a, b, contracted: tuple[int, int]):
    """The product of two matrices at each place, contracted over these axes."""
    axes = (tuple((axis,) for axis in contracted), ((), ()))
    return [
        [jax.lax.dot_general(one, other, axes) for one, other in zip(*rows, strict=True)]
        for rows in zip(a, b, strict=True)
    ]
