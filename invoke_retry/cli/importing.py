"""The one place where a name is imported: one that a person has typed, never a stored one."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from invoke_retry.cli.errors import CommandError
from invoke_retry.cli.safe import clean
from invoke_retry.coordinator import InvokeRetry
from invoke_retry.durations import shown
from invoke_retry.failure import type_name

_EXPECTED = "expected module:name, e.g. shop.retries:retry"


async def coordinator_at(place: str) -> InvokeRetry:
    """The coordinator that `module:name` names, or that the factory of that name makes.

    Modules of the working directory are found first.

    Args:
        place: The name may have dots; a factory is called without arguments, and awaited if it
            is async.

    Raises:
        CommandError: There is none; it says what was found instead.
    """
    module_name, _, name = place.partition(":")
    _check(place, module_name, name)
    found: Any = _imported(module_name)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            _refuse_name(place, found, part)
    if not isinstance(found, InvokeRetry) and callable(found):
        found = await _made_by(place, found)
    if isinstance(found, InvokeRetry):
        return found
    raise CommandError(
        f"{place} is {shown(found)}, but must be an InvokeRetry that was not entered, or a "
        "function without arguments that returns one"
    )


def _check(place: str, module: str, name: str) -> None:
    if module.endswith(".py") or "/" in module:
        meant = ".".join(Path(module).with_suffix("").parts).strip("./") or "module"
        raise CommandError(
            f"{place} names a file; expected module:name, perhaps {meant}:{name or 'retry'}"
        )
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise CommandError(f"{place!r} names no coordinator; {_EXPECTED}")


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CommandError(_no_module(error.name)) from None
        _refuse(f"{name} cannot be imported", error)
    except (Exception, SystemExit) as error:  # it is the module's own, and may be anything
        _refuse(f"{name} cannot be imported", error)


def _no_module(name: str) -> str:
    package, _, last = name.rpartition(".")
    folders = getattr(sys.modules.get(package), "__path__", [str(Path.cwd())])
    names = {path.stem for folder in folders for path in _modules_in(Path(folder))}
    close = _named(get_close_matches(last, names, 3))
    return f"there is no module {name} in {', '.join(folders)} or installed" + (
        f"; close to it: {close}" if close else ""
    )


def _modules_in(folder: Path) -> Iterable[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            yield path


def _refuse(what: str, error: BaseException) -> NoReturn:
    """With the traceback, but for our own part: it is the person's own code that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_foreign(frame.filename)]
    lines = traceback.StackSummary.from_list(own).format()
    sys.stderr.write(clean("".join(lines), lines=True))
    raise CommandError(f"{what}: {type_name(error)}: {error}") from None


def _is_foreign(file: str) -> bool:
    return file != __file__ and "importlib" not in Path(file).parts and not file.startswith("<")


def _refuse_name(place: str, where: Any, missing: str) -> NoReturn:
    inside: dict[str, Any] = getattr(where, "__dict__", {})
    names = {name: value for name, value in inside.items() if not name.startswith("_")}
    coordinators = [name for name, value in names.items() if isinstance(value, InvokeRetry)]
    close = _named(coordinators[:3] or get_close_matches(missing, names, 3))
    what = ("there is", "there are")[len(coordinators) > 1] if coordinators else "close to it"
    raise CommandError(
        f"{place}: {getattr(where, '__name__', where)} has no {missing}"
        + (f"; {what}: {close}" if close else f"; {_EXPECTED}")
    )


def _named(names: Iterable[str]) -> str:
    return ", ".join(names)


async def _made_by(place: str, factory: Any) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise CommandError(
            f"{place} is {shown(factory)}, which wants arguments; expected an InvokeRetry, or a "
            "function without arguments that returns one"
        ) from None
    except ValueError:  # of a function that says nothing of what it takes
        pass
    try:
        made = factory()
        return await made if inspect.isawaitable(made) else made
    except (Exception, SystemExit) as error:  # it is the factory's own, and may be anything
        _refuse(f"{place} made no coordinator", error)
