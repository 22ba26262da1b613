"""Results of pure functions, kept while what they were made from is the same. Used by `composing` and `keeping`.

A claim that comes or goes changes one GPU of a node; what follows from all else is not worked out again.
"""

from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Memo:
    """The last result by key. Not thread-safe: its owner works on one node at a time."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}

    def recall(self, key: Hashable, make: Callable[P, T], *inputs: P.args, **_none: P.kwargs) -> T:
        """Return what `make` gives for these inputs: the result of the last time for this key, if they are equal.

        Inputs and results must not be changed afterwards. Equal ones are mostly the very same objects, for which Python
        compares no further.
        """
        found = self._kept.get(key)
        if found is not None and found[0] == inputs:
            result: T = found[1]
            return result
        result = make(*inputs, **_none)
        self._kept[key] = (inputs, result)
        return result

    def forget(self, key: Hashable) -> None:
        """Forget a key."""
        self._kept.pop(key, None)

    def keep_only(self, keys: set[Hashable]) -> None:
        """Forget all other keys."""
        for key in self._kept.keys() - keys:
            del self._kept[key]
