"""Compiled programs on disk: what one process has compiled, the next one reads.

It is JAX's persistent compilation cache, in a folder beside the decoded images.
"""

import os
import warnings
from typing import Any

import jax

from stabjax.data import cache_dir

_SECONDS = 0.0
"""Shortest compilation that is kept: all are. Nine in ten programs of a run take less than a second, JAX's default, but
seconds together; writing them takes no time that could be measured.
"""


def keep_compiled_programs() -> None:
    """Keep compiled programs for the next process, in the folder ``compiled`` of `stabjax.data.cache_dir`.

    Call it before the first program is compiled; it sets two options of ``jax.config``. What was chosen before stays: a
    folder of JAX's own (``JAX_COMPILATION_CACHE_DIR``), or no cache at all (``JAX_ENABLE_COMPILATION_CACHE=0``).

    Programs are the same if they do the same on the same device, with the same release of JAX; nothing else is read
    from the folder, and it may be removed at any time. It is the user's own: who can write there can run anything.
    """
    options: Any = jax.config
    if options.jax_compilation_cache_dir is not None or not options.jax_enable_compilation_cache:
        return
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # JAX would warn once for every program.
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        warnings.warn(
            f"compiled programs cannot be kept in {folder} ({error}); they are compiled anew each time. "
            "Set STABJAX_CACHE, or JAX_COMPILATION_CACHE_DIR for these alone, to a folder that can be written",
            stacklevel=2,
        )
        return
    options.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        options.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
