"""What can go wrong with the local cluster, in words for the person who started it.

LocalClusterError
├── MissingPackagesError   programs or headers that a package of the system would bring
├── BuildError             Go modules could not be had or built
├── StartError             a component did not become ready
└── LeftoversError         `down` could not remove everything
"""


class LocalClusterError(Exception):
    """The base of all of them; the command line prints it without a traceback."""


class MissingPackagesError(LocalClusterError):
    """Something that the system's packages bring is missing."""


class BuildError(LocalClusterError):
    """Go or one of its builds failed."""


class StartError(LocalClusterError):
    """A component of the cluster ended, or did not become ready in time."""


class LeftoversError(LocalClusterError):
    """Processes, mounts, links, cgroups or files remained after `down`."""
