"""How a process that ran out of memory is told from one that failed."""

from __future__ import annotations

import signal

# Of Python, of CUDA, and of torch's allocator on the CPU.
_COMPLAINTS = ("MemoryError", "out of memory", "can't allocate memory", "not enough memory")


def ran_out_of_memory(code: int, complaint: str) -> bool:
    """Whether a process ended for want of memory.

    Args:
        code: as `subprocess` gives it; the kernel kills with SIGKILL.
        complaint: what the process wrote to standard error.
    """
    return code == -signal.SIGKILL or any(words in complaint for words in _COMPLAINTS)
