"""Sphinx settings; build with `./dev docs`. Needs no network: nothing is looked up elsewhere."""

from importlib.metadata import version as installed_version
from pathlib import Path

project = "jupyter_kernelpool"
author = "the jupyter_kernelpool developers"
copyright = f"2026, {author}"
release = version = installed_version("jupyter-kernelpool")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
# performance.md includes the second.
exclude_patterns = ["_build", "developers/_benchmarks.md"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "substitution"]
myst_heading_anchors = 3
# `./dev bench` draws the plot; the pages build without it.
drawn = (Path(__file__).parent / "_static" / "benchmarks.png").exists()
myst_substitutions = {"plot": "![The benchmarks](/_static/benchmarks.png)" if drawn else ""}

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
