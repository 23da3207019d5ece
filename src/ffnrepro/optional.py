"""Optional libraries."""

import functools
import importlib
import logging
import multiprocessing
from typing import Any

logger = logging.getLogger(__name__)


@functools.cache
def import_optional(name: str, without: str) -> Any | None:
    """Import a library at its first use; None if it is not installed, or if it is installed and broken.

    A broken library, such as one that lacks a system library, gives one warning. Child processes give none, so a process
    whose children use the library imports it first.

    Args:
        name: Name of the module.
        without: What happens without the library, for the warning.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        if not absent and multiprocessing.parent_process() is None:
            reason = str(error).partition("\n")[0] or type(error).__name__
            logger.warning("%s is installed but cannot be loaded (%s); %s", name, reason, without)
        return None
