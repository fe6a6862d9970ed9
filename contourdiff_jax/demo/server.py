# SPDX-License-Identifier: Apache-2.0
"""The server: from its start to its end, after which nothing of a visitor is left.

All that visitors send and get lies below one hidden folder, which only this user can read; gradio's
copies are among it. The folder goes when the server ends, and with the next one where this one was
killed.
"""

import importlib.util
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from contourdiff_jax.demo.offers import Offer
from contourdiff_jax.demo.sessions import Sessions
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk


def serve(offers: Mapping[str, Offer], host: str, port: int, upload_mb: int) -> None:
    """Serve the page until a signal ends it.

    Args:
      offers: runs by the name that visitors choose among.
      upload_mb: MB that an upload may have.

    Raises:
      InputError: no gradio; an address that cannot be served at.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed; pip install 'contourdiff-jax[demo]'")
    with disk.staged(Path(tempfile.gettempdir(), "contourdiff_demo")) as root:
        root.chmod(0o700)
        # gradio looks at these when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": str(root), "GRADIO_ANALYTICS_ENABLED": "False"}
        from contourdiff_jax.demo.page import Page

        page = Page(offers, Sessions(root), upload_mb)
        try:
            page.launch(host, port)
        except OSError as error:  # gradio's own words name its own settings
            taken = f"--port={port}: cannot be served at {host}; is it in use? give another"
            raise InputError(taken) from error
        print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.blocks.close(verbose=False)
