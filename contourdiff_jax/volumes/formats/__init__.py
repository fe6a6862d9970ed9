# SPDX-License-Identifier: Apache-2.0
"""File formats: each module opens, and some write, the files of one family."""
