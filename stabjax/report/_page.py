"""`page`: all of a measurement in one HTML file."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np

from stabjax.report._figure import QUANTITIES, draw_svg
from stabjax.report._images import draw_examples
from stabjax.report._measured import Measured, Several, as_several, have_same_layers
from stabjax.report._numbers import show, show_interval
from stabjax.report._table import draw_table

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="stabjax">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
$outputs
</header>
<main>
<section aria-labelledby="curves">
<h2 id="curves">From layer to layer</h2>
$note
<div class="scroll curves" tabindex="0" role="region" aria-label="D, G and R against depth">
$curves
</div>
<div id="readout" aria-live="polite">Point at the figure, or touch it: the operation and its numbers appear here.</div>
</section>
$examples
<section aria-labelledby="numbers">
<h2 id="numbers">All operations</h2>
<p><label>Show operations with <input type="search" placeholder="part of a name, or a kind"></label></p>
$tables
$hidden
</section>
<section aria-labelledby="words">
<h2 id="words">What the numbers mean</h2>
$words
</section>
<section aria-labelledby="how">
<h2 id="how">How it was measured</h2>
$settings
$commands
</section>
</main>
<script>
$script</script>
</body>
</html>
""")

_WORDS = """<p>Every image <i>x</i> passes the network as it is, smoothly deformed (<i>τx</i>), and with noise
(<i>x + η</i>) of the same size as the change by the deformation. After each operation <i>f</i> of the network:</p>
<ul>
<li><b>D = ⟨|f(τx) − f(x)|²⟩ / ⟨|f(x) − f(z)|²⟩</b>: how far the deformation moves the activations, compared with
the distance between two different images <i>x</i> and <i>z</i>. 0: the operation does not see deformations. 1: a
deformed image is as far from the original as another image is.</li>
<li><b>G</b> is the same for the noise.</li>
<li><b>R = D / G</b>: stability to deformations relative to noise. 1 at the images themselves. Below 1, the network is
less sensitive to smooth deformations than to noise of the same size. Among networks that were trained on the same
images, R of the output goes with the test error.</li>
</ul>
<p>The method is that of Petrini, Favero, Geiger and Wyart, NeurIPS 2021 (arXiv 2105.02468).
Numbers in brackets are intervals that cover with a probability of $confidence %: how much the number would change with
other images of the same kind. With few images they are wide.</p>
<p>An operation is <b>not valid</b> where a number is not defined: all images have the same activations there, or the
network returned a number that is not finite. Operations that are <b>hidden</b> are computed inside of a branch, a loop
or a function with a derivative of its own, where they cannot be looked at; all others are measured as they are.</p>
"""


def page(measured: Several, *, title: str | None = None, command: str = "") -> str:
    """Return the page of one network, or of several side by side, as HTML that needs no other file.

    It holds the numbers of the output, the figure (operations and their numbers appear where the pointer rests),
    examples of the images, a table that can be sorted by any column, what the numbers mean, and how they were measured.
    Networks with the same layers share a table; others have one each, and are drawn against relative depth.

    Args:
        measured: one `Measured`, or several with a label of their own each.
        title: of the page; by default the labels.
        command: that makes a comparison again, beside those that measured the networks.

    Raises:
        ValueError: if there is none, two have one label, or examples have different shapes.
    """
    several = as_several(measured)
    same = have_same_layers(several)
    commands = [*(each.command for each in several), command]
    words = {
        "title": escape(title or f"Stability of {' and '.join(each.label for each in several)}"),
        "style": _read("page.css"),
        "script": _read("page.js"),
        "lead": _lead(several),
        "outputs": _outputs(several),
        "note": "" if same else _describe_difference(several),
        "curves": draw_svg(several),
        "examples": _examples(several),
        "tables": _tables(several, together=same),
        "hidden": "\n".join(_hidden(each, several) for each in several if each.hidden),
        "words": Template(_WORDS).substitute(confidence=f"{100 * several[0].result.confidence:g}"),
        "settings": _settings(several),
        "commands": "\n".join(f"<pre>{escape(line)}</pre>" for line in commands if line),
    }
    return _PAGE.substitute(words)


def _read(name: str) -> str:
    return (files("stabjax.report") / name).read_text(encoding="utf-8")


def _lead(several: Sequence[Measured]) -> str:
    """Say how much was measured: once, if it was the same for all."""
    counts = {}
    for each in several:
        images, draws = int(np.sum(each.result.measured)), np.shape(each.result.noise_radius)[0]
        operations = sum(kind not in ("input", "output") for kind in each.result.kinds)
        counts[each.label] = f"{operations} operations, {images} images, {draws} deformation{'s'[: draws > 1]} each"
    same = len(set(counts.values())) == 1
    facts = list(counts.values())[:1] if same else [f"{label}: {count}" for label, count in counts.items()]
    return f'<p class="quiet">{escape("; ".join(facts))}.</p>'


def _outputs(several: Sequence[Measured]) -> str:
    """Return the numbers of the last operation of each network."""
    parts = []
    for each in several:
        last = escape(each.result.layers[-1])
        items = []
        for symbol, name in QUANTITIES:
            value, ends = (np.asarray(getattr(each.result, part))[-1] for part in (name, f"{name}_interval"))
            items.append(f"<li>{symbol} at {last}<b>{show(value)}</b><small>{show_interval(*ends)}</small></li>")
        if len(several) > 1:
            parts.append(f'<p class="quiet">{escape(each.label)}</p>')
        parts.append(f'<ul class="output">{"".join(items)}</ul>')
    return "\n".join(parts)


def _describe_difference(several: Sequence[Measured]) -> str:
    """Say which layers keep the networks from being compared one by one."""
    parts = []
    for each in several:
        others = {layer for other in several if other is not each for layer in other.result.layers}
        own = [layer for layer in each.result.layers if layer not in others]
        named = f" ({', '.join(own[:3])}{', ...' if len(own) > 3 else ''})" if own else ""
        parts.append(f"{len(own)} of {len(each.result.layers)} only in {each.label}{named}")
    return (
        f"<p>The layers of these networks differ: {escape('; '.join(parts))}. They are drawn against relative depth, "
        "from the images at 0 to the output at 1.</p>"
    )


def _examples(several: Sequence[Measured]) -> str:
    parts = [draw_examples(*each.examples) for each in several if each.examples is not None]
    if not parts:
        return ""
    return (
        '<section class="examples" aria-labelledby="examples"><h2 id="examples">Images as they were measured</h2>\n'
        f"<div>{''.join(parts)}</div></section>"
    )


def _tables(several: Sequence[Measured], *, together: bool) -> str:
    if together:
        return draw_table(several, caption="In order of execution; a heading sorts by its column.")
    return "\n".join(draw_table([each], caption=f"{each.label}; a heading sorts by its column.") for each in several)


def _hidden(each: Measured, several: Sequence[Measured]) -> str:
    of = f" in {each.label}" if len(several) > 1 else ""
    items = "".join(f"<li><code>{escape(name)}</code>: {escape(reason)}</li>" for name, reason in each.hidden)
    return f"<p>Hidden operations{escape(of)}:</p><ul>{items}</ul>"


def _settings(several: Sequence[Measured]) -> str:
    """Return a table of settings and versions, a column for each network; rows that differ are marked."""
    columns = [{**each.settings, **each.versions} for each in several]
    rows = []
    for term in dict.fromkeys(term for column in columns for term in column):
        values = [str(column.get(term, "")) for column in columns]
        mark = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f'<tr{mark}><th scope="row">{escape(term)}</th>{cells}</tr>')
    labels = "".join(f'<th scope="col">{escape(each.label)}</th>' for each in several)
    head = f"<thead><tr><td></td>{labels}</tr></thead>" if len(several) > 1 else ""
    return f'<div class="scroll"><table class="settings">{head}<tbody>{"".join(rows)}</tbody></table></div>'
