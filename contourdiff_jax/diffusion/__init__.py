# SPDX-License-Identifier: Apache-2.0
"""The mathematics of diffusion: schedules, the forward process, samplers, guidance."""
