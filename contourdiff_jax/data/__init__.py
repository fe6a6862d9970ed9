# SPDX-License-Identifier: Apache-2.0
"""From files to training examples: volumes, intensities, grids, contours, stores, batches."""
