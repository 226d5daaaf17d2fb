"""Warm kernels for Jupyter Server: kernels start at once, and never worse than stock."""

__version__ = "0.1.0.dev0"


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    """Tell Jupyter Server where the extension is (called by its extension manager)."""
    from jupyter_kernelpool.extension import KernelPoolExtension

    return [{"module": "jupyter_kernelpool", "app": KernelPoolExtension}]
