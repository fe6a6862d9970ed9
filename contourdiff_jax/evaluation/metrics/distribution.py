# SPDX-License-Identifier: Apache-2.0
"""Distances between two sets of images by their features: Fréchet (FID) and kernel (KID).

FID: Heusel et al., arXiv 1706.08500: the 2-Wasserstein distance of two normal distributions,
|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2). KID: Binkowski et al., arXiv 1801.01401: the
unbiased squared maximum mean discrepancy with the kernel (x.y/D + 1)^3. They are called FID and KID
only where features are those of InceptionV3. All is computed in float64.

Legend: N and M images, D features, R resamples.
"""

import numpy as np

SUBSETS = 100
SUBSET = 1000  # images
SEED = 2020
CHUNK = 1024  # rows of a kernel matrix at a time


# ----------------------------------------------------------------------------------------------
# Fréchet distance
# ----------------------------------------------------------------------------------------------


def statistics(features) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], float64, of features [N, D], N > 1."""
    features = np.asarray(features, np.float64)
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet(x, y) -> float:
    """Squared Fréchet distance of features x [N, D] and y [M, D].

    With X the centred features over (N - 1)^1/2, so that S_x = X^T X, the trace of the root is the
    sum of the singular values of X Y^T. That holds for covariances of any rank, needs no root of a
    matrix [D, D], and is cheap where images are few. Packages differ in how they take that trace,
    by a root or by eigenvalues, not in what it is.
    """
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    difference = np.square(x.mean(0) - y.mean(0)).sum()
    x, y = _root(x), _root(y)
    product = x @ y.T if len(x) <= len(y) else y @ x.T
    # Singular values as roots of eigenvalues: a fifth of the time, and 1e-8 of the largest exact.
    squares = np.linalg.eigvalsh(product @ product.T)
    trace = np.sqrt(np.maximum(squares, 0)).sum()
    return float(difference + np.square(x).sum() + np.square(y).sum() - 2 * trace)


def _root(x: np.ndarray) -> np.ndarray:
    """A matrix [at most D, D] whose product with itself, X^T X, is the covariance of x [N, D]."""
    x = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return x if len(x) <= x.shape[1] else np.linalg.qr(x, mode="r")


# ----------------------------------------------------------------------------------------------
# Kernel distance
# ----------------------------------------------------------------------------------------------


def kernel(x, y, size: int | None = None, seed: int = SEED) -> float:
    """Mean over `SUBSETS` pairs of random subsets of the kernel distance of x [N, D] and y [M, D].

    Args:
      size: of the subsets; by default SUBSET, or as many images as the smaller set has.
      seed: of a numpy RandomState that draws from x, then from y, without replacement.
    """
    size = min(SUBSET, len(x), len(y)) if size is None else size
    random = np.random.RandomState(seed)  # the packages' generator
    pairs = [[random.choice(len(a), size, replace=False) for a in (x, y)] for _ in range(SUBSETS)]
    # A kernel of all images serves all subsets, unless it were the larger work.
    if len(x) * len(y) > SUBSETS * size**2:
        ones = np.ones((1, size))
        return float(np.mean([kernels(x[a], y[b], ones, ones) for a, b in pairs]))
    weights = [np.zeros((SUBSETS, len(a))) for a in (x, y)]
    for number, chosen in enumerate(pairs):
        for weight, members in zip(weights, chosen, strict=True):
            weight[number, members] = 1
    return float(kernels(x, y, *weights).mean())


def kernels(x, y, counts_x, counts_y) -> np.ndarray:
    """Kernel distances [R] of sets that hold each image of x [N, D] and y [M, D] a number of times.

    Counts are [R, N] and [R, M]. An image is never paired with itself, however often it is there:
    copies that resampling makes would pass for likeness.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    within = [
        _pairs(a, a, counts, counts, own=False) for a, counts in ((x, counts_x), (y, counts_y))
    ]
    return sum(within) - 2 * _pairs(x, y, counts_x, counts_y, own=True)


def _pairs(x, y, counts_x, counts_y, own: bool) -> np.ndarray:
    """Means [R] of the kernel over pairs of an image of x and one of y; own: with the same one."""
    total = np.zeros(len(counts_x))
    for first in range(0, len(x), CHUNK):
        part = slice(first, first + CHUNK)
        values = (x[part] @ y.T / x.shape[1] + 1) ** 3
        if not own:
            np.fill_diagonal(values[:, first:], 0)
        total += ((counts_x[:, part] @ values) * counts_y).sum(1)
    pairs = counts_x.sum(1) * counts_y.sum(1)
    return total / (pairs if own else pairs - np.square(counts_x).sum(1))
