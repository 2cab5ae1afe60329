"""Pages to look at: one HTML file each that needs nothing else, on paper-white or in the dark, on a desk or a phone."""

import base64
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

VARIABLES = {
    "#010101": "var(--ink)",
    "#020202": "var(--faint)",
    "#030303": "var(--blue)",
    "#040404": "var(--orange)",
    "#050505": "var(--good)",
    "#060606": "var(--violet)",
    "#070707": "var(--teal)",
    "#080808": "var(--rose)",
}
INK, FAINT, BLUE, ORANGE, GREEN, VIOLET, TEAL, ROSE = VARIABLES
"""Colours to plot in, for which those of the page are put: they change with its scheme."""
SERIES = (BLUE, ORANGE, GREEN, VIOLET, TEAL, ROSE)
"""Those that tell things of one kind apart."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6670; --faint: #b9c0c7; --paper: #fbfbfa; --card: #ffffff;
  --line: #e3e6e8; --blue: #2468b4; --orange: #c8641b; --good: #1f7a4d; --bad: #b3261e; --tint: 36, 104, 180;
  --violet: #7446b0; --teal: #0c7a86; --rose: #b23a6d;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --faint: #4a535c; --paper: #14171a;
  --card: #1b1f23; --line: #2b3137; --blue: #6fb0f5; --orange: #f0975a; --good: #5fc493; --bad: #ff8a80;
  --tint: 111, 176, 245; --violet: #b99af2; --teal: #56c2cd; --rose: #f291b8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 var(--font); }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.5rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 0.25rem; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 1.75rem 0 0.6rem; }
p { margin: 0.25rem 0 0.75rem; max-width: 46rem; }
.soft, figcaption, h3 small { color: var(--soft); font-weight: normal; }
.notice { display: inline-block; border: 1px solid var(--orange); color: var(--orange); border-radius: 99px;
  padding: 0.15rem 0.8rem; font-size: 0.85rem; font-weight: 600; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.75rem 0 0; }
.numbers p { flex: 1 1 13rem; margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 0.9rem 1.2rem 1rem; line-height: 1.4; }
.numbers b { display: block; font-size: 2rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.3; }
.numbers small { display: block; color: var(--soft); font-size: 0.85rem; margin-top: 0.3rem; }
.grid { display: grid; gap: 0.9rem; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; border-radius: 8px; background: #000; }
.grid figure img { aspect-ratio: 1; object-fit: contain; }
figcaption { font-size: 0.78rem; line-height: 1.35; margin-top: 0.35rem; overflow-wrap: anywhere; }
figcaption b { display: block; font-weight: 600; }
.right b { color: var(--good); }
.wrong b { color: var(--bad); }
.wrong img { outline: 3px solid var(--bad); outline-offset: -1px; }
.beside { margin: 0.9rem 0 0; padding: 0.7rem 0.9rem 0.9rem; border-left: 3px solid var(--line); }
.beside > p { font-size: 0.85rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 4px; font-variant-numeric: tabular-nums; margin: 0.75rem 0; }
th { font-weight: 500; font-size: 0.85rem; color: var(--soft); padding: 0.2rem 0.6rem; text-align: right; }
thead th { text-align: center; }
td { min-width: 4.2rem; padding: 0.55rem 0.5rem; text-align: center; border: 1px solid var(--line);
  border-radius: 8px; }
td.hit { font-weight: 650; }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.curves > *, .sheet { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 0.8rem; }
.sheet { margin-top: 1rem; max-width: 44rem; }
svg { width: 100%; height: auto; display: block; }
details { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: 0.8rem; line-height: 1.45; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; padding: 1rem; }
"""


def document(title: str, body: str, style: str = "", script: str = "", images: str = "data:") -> str:
    """A page as HTML: UTF-8, no addresses. Its policy lets a browser load images alone, and run no other script.

    Args:
      title: plain text, escaped here.
      body: HTML.
      style: CSS that the page has beside `STYLE`.
      script: JavaScript, run once the page is there.
      images: where images may come from, as a policy says it: the page itself by default.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    may_run = f"; script-src 'sha256-{digest}'" if script else ""
    policy = f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'{may_run}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}"
        f"{f'<script>{script}</script>' if script else ''}\n</body>\n</html>\n"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, the first row its heads and the first column theirs."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows[1:]
    )
    return f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'


def plot(
    name: str, label: str, across: str, paint: Callable[[Any], None], size: tuple[float, float] = (5.6, 2.9)
) -> str:
    """An `<svg>` element without addresses of any kind.

    Args:
      name: another for each plot of a page.
      label: what is plotted, its title.
      across: what lies on the x axis.
      paint: draws on matplotlib's axes.
      size: width and height; a line of text is about 0.15 high.
    """
    # The object interface: pyplot would choose a window system and keep the figure.
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(label, loc="left", fontsize=10, color=INK)
        axes.set_xlabel(across, color=INK)
        axes.tick_params(color=FAINT, labelcolor=INK)
        axes.grid(color=FAINT, linewidth=0.5, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        paint(axes)
        if any(not text.startswith("_") for text in axes.get_legend_handles_labels()[1]):
            axes.legend(frameon=False, labelcolor=INK)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(out.getvalue(), f"{label} by {across}")


def _inline(text: str, label: str) -> str:
    """matplotlib's SVG file as an element of an HTML page, in the page's colours and font."""
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(xmlns(:xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    # Its style block would hold for the whole page, and its groups' ids would repeat from curve to curve.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font(-family)?:[^;\"]*sans-serif[^;\"]*", "font: 10px var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
