# SPDX-License-Identifier: Apache-2.0
"""Contours: all that a model sees of an image."""
