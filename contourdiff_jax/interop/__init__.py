# SPDX-License-Identifier: Apache-2.0
"""Weights of others, in and out."""
