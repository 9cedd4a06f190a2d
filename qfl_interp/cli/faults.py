"""What a user can do something about, in one line; anything else is our mistake and keeps its traceback."""

from __future__ import annotations

import re

from qfl_interp.errors import QflError, redact

# How PyTorch and CUDA's libraries say that memory is short; on the CPU it is a plain RuntimeError.
_NO_MEMORY = re.compile(r"DefaultCPUAllocator|CUDA (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED")
_SMALLER = "Take fewer examples, directions, layers or --jobs at a time, or a smaller --batch-size or model"


def sentence(error: Exception) -> str | None:
    """The line a user reads of an error; None for one that no user can help."""
    if isinstance(error, (QflError, ValueError)):
        return redact(str(error))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        size = re.search(r"allocate (\d+ bytes|[\d.]+ [KMGT]iB)", str(error))
        asked = f"{_readable(size[1])} could not be had" if size else "there is too little"
        where = "the GPU's memory" if "CU" in str(error) else "memory"
        return f"out of {where}: {asked}. {_SMALLER}; finished parts are kept."
    if isinstance(error, OSError) and error.errno is not None:
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' and '.join(named) or 'a file'}: {error.strerror}. Check what is there and its permissions."
    return None


def _readable(size: str) -> str:
    """A size with its unit; many bytes as GiB."""
    number, unit = size.split()
    return f"{int(number) / 2**30:,.2f} GiB" if unit == "bytes" else size
