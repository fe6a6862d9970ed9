# SPDX-License-Identifier: Apache-2.0
"""From translations to scores."""
