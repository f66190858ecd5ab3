"""Sphinx configuration of the documentation: `make docs` writes it to docs/_build/html."""

import eoid

project = "EoID"
author = "The EoID authors"
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

nitpicky = False
html_theme = "furo"
html_title = f"EoID {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
