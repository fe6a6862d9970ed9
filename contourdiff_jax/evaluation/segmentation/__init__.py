# SPDX-License-Identifier: Apache-2.0
"""Segmentation, by which translations are judged: training, networks, label volumes, scores."""
