"""The program `dra-driver`: command line, settings, logging, wiring, and `run`, a share without a cluster."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dra-driver-vgpu")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"
