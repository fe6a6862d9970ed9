# SPDX-License-Identifier: Apache-2.0
"""`python -m contourdiff_jax` is `contourdiff`."""

import sys

from contourdiff_jax.cli import main

sys.exit(main())
