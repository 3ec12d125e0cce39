"""
Import strings, `package.module:attribute`: their form, and what they name.

Reading a configuration checks the form only; what is named is imported by whoever first needs it.
"""

from __future__ import annotations

import re
from importlib import import_module

from parallel.checks import Form, did_you_mean

_IMPORT_STRING = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


IMPORT_FORM: Form = {"type": "string", "pattern": f"^{_IMPORT_STRING.pattern}$"}
"""What an import string looks like."""


def is_import_string(value: object) -> bool:
    """
    Tell whether a value has the form of an import string.
    """
    return isinstance(value, str) and _IMPORT_STRING.fullmatch(value) is not None


def with_colon(value: object) -> str:
    """
    Suggest `package.module:attribute` for `package.module.attribute`, to be put behind a message.
    """
    said = ":".join(value.rsplit(".", 1)) if isinstance(value, str) else ""
    return did_you_mean(said, [said]) if is_import_string(said) else ""


def imported(import_string: str) -> object:
    """
    Import what an import string names.

    Raises:
        ImportError: There is no such module, or it can't be loaded.
        AttributeError: The module has nothing of that name.
    """
    module, _, path = import_string.partition(":")
    found: object = import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found
