# SPDX-License-Identifier: Apache-2.0
"""Segmentation, by which translations are judged: training, trained networks, label volumes."""
