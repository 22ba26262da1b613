"""The C library that makes a share of a GPU a smaller GPU, its stub driver, and the Python view of its files.

`shares` writes and reads the limits and books of a share, `paths` finds the built library, `layout` is the C header as
Python sees it. The node agent and `dra-driver run` use them; nothing here knows Kubernetes.
"""
