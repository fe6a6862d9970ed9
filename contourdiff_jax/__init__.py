# SPDX-License-Identifier: Apache-2.0
"""Unpaired, contour-conditioned medical image translation in JAX.

The method is ContourDiff (arXiv 2403.10786).
"""

__version__ = "0.1.0"
