# SPDX-License-Identifier: Apache-2.0
"""The demo: one image at a time, translated in a browser; only page.py knows gradio."""
