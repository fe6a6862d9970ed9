# SPDX-License-Identifier: Apache-2.0
"""The machine: devices, processes, and what is kept on disk. It knows no images."""
