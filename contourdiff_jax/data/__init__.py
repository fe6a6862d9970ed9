# SPDX-License-Identifier: Apache-2.0
"""From folders of scans to training examples: layouts, inspection, stores, augmentation, feeds."""
