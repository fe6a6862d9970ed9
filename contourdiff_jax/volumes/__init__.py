# SPDX-License-Identifier: Apache-2.0
"""One volume: how it is read, what its numbers mean, where it lies, and how it is written."""
