"""Sphinx configuration of the documentation: `make docs` writes it to docs/_build/html."""

import latex2mathml.converter
from docutils import nodes

import eoid

project = "EoID"
author = copyright = "The EoID authors"
version = release = eoid.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinxcontrib.programoutput",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# A test executes the notebook; the pages show the outputs stored in it.
nb_execution_mode = "off"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_math_renderer = "mathml"
# Two hyphens are options here, not dashes.
smartquotes = False

html_theme = "furo"
html_title = f"EoID {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]


def _link_to_pages(app, relative_path, parent_docname, source):
    """Links between files of the repository become links between pages that include them."""
    text = source[0].replace("(study/results/README.md)", "(study.md)")
    source[0] = text.replace("(../docs/", "(")


def _escape_patterns(app, ctx, lines):
    """Help texts are plain text: asterisks in file patterns are not markup."""
    lines[:] = [line.replace("*", r"\*") for line in lines]


def _inline_math(writer, node):
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _block_math(writer, node):
    writer.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app):
    # MathML needs no script, unlike MathJax, so that the pages work without a network.
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline_math, None), block_renderers=(_block_math, None)
    )
    app.connect("sphinx-click-process-description", _escape_patterns)
    app.connect("include-read", _link_to_pages)
