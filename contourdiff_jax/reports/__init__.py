# SPDX-License-Identifier: Apache-2.0
"""From scores to pages. Reports never see arrays."""
