"""
What a user of the command line asks for by name; or why that can't be had.
"""

from __future__ import annotations

import os
import traceback
from importlib import import_module
from typing import NoReturn

from parallel.checks import did_you_mean
from parallel.imports import is_import_string, with_colon


class Refusal(Exception):
    """It can't begin; its text says why."""


def found_by(name: str) -> object:
    """
    Import what `MODULE:FUNCTION` names; what the module raises is shown as it is.

    Raises:
        Refusal: There is no such thing.
    """
    if not is_import_string(name):
        raise Refusal(f"expected MODULE:FUNCTION, such as shop.images:thumbnail, found {name!r}{with_colon(name)}")
    module, _, path = name.partition(":")
    found = module_by(module)
    so_far = module
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            near = did_you_mean(attribute, [each for each in dir(found) if not each.startswith("_")])
            raise Refusal(f"{so_far} has no {attribute!r}{near}") from None
        so_far = f"{so_far}.{attribute}"
    return found


def module_by(name: str) -> object:
    """
    Import a module.

    Raises:
        Refusal: There is none of that name, or it can't be imported.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise Refusal(f"no module named {error.name!r}, neither in {os.getcwd()} nor installed") from None
        _cant_import(name)
    except (Exception, SystemExit):
        _cant_import(name)


def _cant_import(module: str) -> NoReturn:
    raise Refusal(f"{module} can't be imported:\n{traceback.format_exc().rstrip()}")
