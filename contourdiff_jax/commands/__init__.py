# SPDX-License-Identifier: Apache-2.0
"""The commands: flags and printing, one file each."""
