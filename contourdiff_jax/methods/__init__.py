# SPDX-License-Identifier: Apache-2.0
"""One file a method: what it learns, and how it draws."""
