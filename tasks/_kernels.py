"""How loops over examples are compiled.

Write `@no_type_check` under `@kernel`: the tests check the shapes of every function of this package by wrapping it, and
a wrapped function cannot be compiled. Check shapes in the Python function that calls the kernel.
"""

from __future__ import annotations

import numba

# Compiled on first use and kept on disk; does not hold the interpreter lock while it runs.
kernel = numba.njit(cache=True, nogil=True)
