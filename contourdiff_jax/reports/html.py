# SPDX-License-Identifier: Apache-2.0
"""A web page that is complete in itself: style and pictures are inside, and there are no scripts.

Arguments are plain text, which is escaped, unless they are said to be HTML.
"""

import base64
import json
from html import escape
from pathlib import Path

import contourdiff_jax
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime.disk import reason

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       margin: 0 auto; max-width: 1100px; padding: 1rem; }
h1 { font-size: 1.7rem; margin: .5rem 0; }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 2px solid #ddd; }
h3 { margin: 1.5rem 0 .5rem; }
.notice { background: #fff4d6; border-left: 4px solid #d90; padding: .5rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem;
         border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #999; }
tr.ours { background: #f0f6ff; }
td b { color: #000; }
td small { display: block; color: #666; white-space: nowrap; }
details table { font-size: .85rem; }
details th, details td { padding: .2rem .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: .5rem 0; }
dt { font-weight: 600; }
dd { margin: 0; }
.note, dl, figcaption, footer { color: #555; font-size: .9rem; }
.row { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .8rem; font-size: .85rem; white-space: pre-wrap;
      overflow-wrap: anywhere; }
summary { cursor: pointer; color: #06c; margin: .5rem 0; }
"""


def page(title: str, notice: str, sections: list[str]) -> str:
    """The whole page: a title, a notice in a box and the sections, which are HTML."""
    body = "\n".join(f"<section>{section}</section>" for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="notice"><b>{escape(notice)}</b></p>
{body}
<footer><p>contourdiff_jax {escape(contourdiff_jax.__version__)}</p></footer>
</body>
</html>
"""


def picture(png: bytes, caption: str) -> str:
    """A PNG file inside the page, with its caption."""
    data, text = base64.b64encode(png).decode("ascii"), escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def read_png(path: Path) -> bytes:
    """A picture's file; InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def details(summary: str, content: str) -> str:
    """HTML that is folded away behind a line of text."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def definitions(fields: dict) -> str:
    """A table of names and what they are; lists in one line, anything deeper as JSON."""
    rows = []
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, dict):
            shown = "<br>".join(
                f"{escape(str(k))}: {escape(json.dumps(v))}" for k, v in value.items()
            )
        elif isinstance(value, list):
            shown = escape(", ".join(map(str, value)))
        else:
            shown = escape(str(value))
        rows.append(f"<tr><th>{escape(str(name))}</th><td>{shown}</td></tr>")
    return f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>'
