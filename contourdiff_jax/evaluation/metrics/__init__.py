# SPDX-License-Identifier: Apache-2.0
"""Numbers that compare images: arrays in, floats out."""
