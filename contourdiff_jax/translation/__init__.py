# SPDX-License-Identifier: Apache-2.0
"""From volumes of another domain to volumes of the target."""
