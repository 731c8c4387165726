"""How the compiled loops of this package are compiled. Importing this module imports numba."""

from collections.abc import Callable

import numba


__all__ = ["compiled"]


def compiled(function: Callable) -> Callable:
    """Compiles a function at its first call, without the GIL, and keeps the code on disk where that is possible."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)
