"""Sphinx settings; build with `./dev docs`. Needs no network: nothing is looked up elsewhere."""

from importlib.metadata import version as installed_version

project = "jupyter_kernelpool"
author = "the jupyter_kernelpool developers"
copyright = f"2026, {author}"
release = version = installed_version("jupyter-kernelpool")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = f"jupyter_kernelpool {release}"
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False
html_copy_source = False
