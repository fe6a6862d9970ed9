# SPDX-License-Identifier: Apache-2.0
"""Segmenters, by which translations are judged: their protocol, files, tests and scores."""
