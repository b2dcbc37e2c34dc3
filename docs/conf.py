"""The settings of the site; `make docs` builds it.

The source folder is the root of the repository, so that a link from one document to
another is the same on the site and in the repository.
"""

import re
import textwrap

from sphinx.util import inspect

project = "keras_init_lstm"
html_title = project
html_theme = "furo"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["site"]  # its `index.html` leads to `docs/index.html`

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "docs/**",
    "notebooks/README.md",
    "notebooks/*.ipynb",
]
exclude_patterns = [".*", "build", "docs/site", "mutants", "out", "tests"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # the notebooks are stored with their outputs
nb_merge_streams = True
myst_heading_anchors = 4

autodoc_default_options = {"exclude-members": "keras_layer"}
autodoc_inherit_docstrings = False  # what only Keras documents is left out
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more
napoleon_attr_annotations = False  # nor are the types of attributes shown
napoleon_use_rtype = False  # what is returned is one sentence
smartquotes_action = "q"  # three dots in code stay three dots
default_role = "py:obj"  # a name in single backticks links to its documentation
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Input shape",
    "Output shape",
]
linkcheck_timeout = 20


def add_toctrees(_app, page, source):
    """Makes the navigation from the lists of links of the first page."""
    if page != root_doc:
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0]
        links = re.findall(r"^- \[(.*?)\]\((\S+)\.\w+\)", section, re.MULTILINE)
        pages = [f"{title} <{path}>" for title, path in links]
        options = ["```{toctree}", ":hidden:", f":caption: {caption}", ""]
        source[0] += "\n" + "\n".join([*options, *pages, "```"]) + "\n"


def rewrite_docstring(_app, _what, _name, _obj, _options, lines):
    """Makes reStructuredText of links, and of what follows `Example:`."""
    text = re.sub(
        r"\[([^]]+)\]\((https?://[^)\s]+)\)", r"`\1 <\2>`__", "\n".join(lines)
    )
    before, example, after = text.partition("\nExample:\n")
    lines[:] = (before + example + textwrap.indent(after, "    ")).split("\n")


def signature_of_constructor(_app, what, _name, obj, *_):
    """The arguments of `__init__`, as `__new__` of Keras's layers takes any."""
    if what == "class":
        found = inspect.signature(obj.__init__, bound_method=True)
        return inspect.stringify_signature(found, show_annotation=False), None
    return None


def setup(app):
    """Registers the functions above."""
    app.connect("source-read", add_toctrees)
    app.connect("autodoc-process-docstring", rewrite_docstring, priority=0)
    app.connect("autodoc-process-signature", signature_of_constructor)
