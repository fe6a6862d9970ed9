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

    Where there are fewer images than features, the trace of the root is the sum of the singular
    values of X Y^T / sqrt((N - 1) (M - 1)), X and Y centred: exact, and far cheaper than a root of
    [D, D], which is singular then. Packages differ in how they take the trace, by a root or by
    eigenvalues, not in what it is.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) >= x.shape[1]:
        return frechet_of_statistics(statistics(x), statistics(y))
    means = x.mean(0), y.mean(0)
    x, y = ((a - mean) / np.sqrt(len(a) - 1) for a, mean in zip((x, y), means, strict=True))
    return _frechet(*means, np.square(x).sum(), np.square(y).sum(), _nuclear(x @ y.T))


def frechet_of_statistics(x, y) -> float:
    """Squared Fréchet distance of two pairs of mean [D] and covariance [D, D]."""
    (mean_x, covariance_x), (mean_y, covariance_y) = x, y
    # tr (S_x S_y)^1/2 is the sum of the roots of the eigenvalues of R S_y R, R^2 = S_x.
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariance_y @ root)
    trace = np.sqrt(np.maximum(product, 0)).sum()
    return _frechet(mean_x, mean_y, np.trace(covariance_x), np.trace(covariance_y), trace)


def _frechet(mean_x, mean_y, trace_x, trace_y, trace_root) -> float:
    return float(np.square(mean_x - mean_y).sum() + trace_x + trace_y - 2 * trace_root)


def _nuclear(matrix: np.ndarray) -> float:
    return np.linalg.svd(matrix, compute_uv=False).sum()


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
