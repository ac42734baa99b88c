"""The door for metadata: they are parsed here, and compared with a schema, before anything else sees them.

What does not fit is an InputError of one sentence: the file, the key, what is there, what is expected and a remedy.
What fits is passed on as it is in the file; keys that a schema does not name are let through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.system.errors import InputError, printable
from common.system.files import check_regular

if TYPE_CHECKING:
    from pydantic import BaseModel

DEEPEST = 100
"""Tables and lists within each other; files of this project have at most eight."""
LARGEST = 1 << 63
"""No whole number in a file reaches it: beyond, neither torch nor numpy have a type for it."""
LARGEST_SIDE = 4096
"""Of images, in pixels: the basis of a transform is a matrix of its square, and networks take far smaller ones."""
LARGEST_SET = 1 << 33
"""Values of all images that a set decodes to, 32 GiB: no set that anyone has made comes near it."""
_DIGITS = 400  # of a number that is read; longer ones are cut, and refused all the same
_LONGEST = 60  # characters of a value that a sentence quotes


class NoJson(InputError):
    """A text is no JSON, or only the beginning of one."""


class _Anything:
    """Stands where a key is missing, to find out what would have been expected there."""


def read(path: Path, schema: type[BaseModel], remedy: str) -> dict[str, Any]:
    """The content of a JSON file, which fits the schema. Raises InputError if there is none, or it does not fit.

    remedy: the end of the sentence, which says what to do.
    """
    return check(parse(read_text(path, remedy), str(path), remedy), schema, str(path), remedy)


def read_text(path: Path, remedy: str) -> str:
    """The content of a text file. Raises InputError if it cannot be read."""
    try:
        check_regular(path)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged (it is not text in UTF-8): {remedy}") from error


def parse(text: str, where: str, remedy: str) -> Any:
    """The value of a JSON text. Raises NoJson if it is none, and InputError for one that `check_plain` refuses.

    where: what the text is from, the subject of the sentence.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise _too_deep(where, "", remedy) from error
    except ValueError as error:
        raise NoJson(f"{where} is damaged (it is no JSON: {error}): {remedy}") from error
    check_plain(content, where, remedy)
    return content


def check(content: Any, schema: type[BaseModel], where: str, remedy: str) -> dict[str, Any]:
    """Return what was given, a table that fits the schema. Raises InputError if it does not fit."""
    from pydantic import ValidationError

    try:
        schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{_first(error.errors()[0], content, schema, where)}: {remedy}") from error
    assert isinstance(content, dict)
    return content


def check_plain(content: Any, where: str, remedy: str) -> None:
    """Raise InputError for values that JSON does not have, or that nothing can use.

    These are other types, NaN and infinity, whole numbers from `LARGEST` on, and more than `DEEPEST` levels.
    """
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(content, ())]
    while waiting:
        value, loc = waiting.pop()
        if len(loc) > DEEPEST:
            raise _too_deep(where, _key(loc[:3]), remedy)
        if isinstance(value, Mapping):
            for name in value:
                if not isinstance(name, (str, int, float, bool, type(None))):
                    raise InputError(f"{where} has a key that is {_shown(name)}{_of(_key(loc))}, not text: {remedy}")
            waiting += [(each, (*loc, name)) for name, each in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(each, (*loc, number)) for number, each in enumerate(value)]
        elif not isinstance(value, (str, bool, int, float, type(None))):
            raise InputError(
                f"{where} has {_shown(value)}{_of(_key(loc))}, and text, a number, true, false, null, or lists and "
                f"tables of these are expected: {remedy}"
            )
        elif isinstance(value, int) and abs(value) >= LARGEST:
            raise InputError(f"{where} has a whole number of more than 18 digits{_of(_key(loc))}, too large: {remedy}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where} has {value}{_of(_key(loc))}, and a finite number is expected: {remedy}")


def refuse(where: str, key: str, value: Any, expected: str, remedy: str) -> InputError:
    """The error for a value that does not fit the others. expected: "3 numbers, one for each channel"."""
    return InputError(f"{where} has {_shown(value)}{_of(key)}, and {expected} is expected: {remedy}")


def _whole(digits: str) -> int:
    return int(digits[:_DIGITS])


def _too_deep(where: str, key: str, remedy: str) -> InputError:
    return InputError(f"{where} has tables or lists in more than {DEEPEST} levels{_of(key)}: {remedy}")


def _first(error: Mapping[str, Any], content: Any, schema: type[BaseModel], where: str) -> str:
    """The first of what is wrong, as the beginning of a sentence."""
    loc = error["loc"]
    if error["type"] == "missing":
        return f"{where} lacks '{_key(loc)}' ({_expected(_if_given(content, schema, loc))} is expected)"
    if error["type"] == "extra_forbidden":
        return f"{where} has '{_key(loc)}', which this version does not know and which may change the result"
    if not loc:
        return f"{where} holds {_shown(error['input'])}, and {_expected(error)} is expected"
    return f"{where} has {_shown(error['input'])}{_of(_key(loc))}, and {_expected(error)} is expected"


def _if_given(content: Any, schema: type[BaseModel], loc: Sequence[Any]) -> Mapping[str, Any] | None:
    """What would be wrong with a value of no type at all in place of a key that is missing."""
    from pydantic import ValidationError

    filled = _with(content, loc, _Anything())
    try:
        schema.model_validate(filled)
    except ValidationError as error:
        return next((each for each in error.errors() if each["loc"][: len(loc)] == tuple(loc)), None)
    return None  # any value will do


def _with(content: Any, loc: Sequence[Any], value: Any) -> Any:
    if not loc:
        return value
    copied = dict(content) if isinstance(content, Mapping) else list(content)
    there = copied.get(loc[0]) if isinstance(copied, dict) else copied[loc[0]]
    copied[loc[0]] = _with(there, loc[1:], value)
    return copied


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "literal_error": "{expected}",
    "greater_than_equal": "a number of at least {ge}",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of at most {le}",
    "less_than": "a number below {lt}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of another form",
    "is_instance_of": "a {class}",
}


def _expected(error: Mapping[str, Any] | None) -> str:
    """What would fit, as a noun phrase."""
    if error is None:
        return "a value"
    known = _EXPECTED.get(error["type"])
    return error["msg"] if known is None else known.format_map(error.get("ctx", {}))


def _key(loc: Sequence[Any]) -> str:
    """A place in a file: "evaluation.epochs", "class_names[3]"; "" for the file as a whole."""
    text = printable("".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in loc).lstrip("."))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _of(key: str) -> str:
    return f" for '{key}'" if key else ""


def _shown(value: Any) -> str:
    """A value that a file holds, in a few words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"a table of {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if not isinstance(value, (str, int, float)):
        return f"a {type(value).__name__}"
    text = json.dumps(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def lines(path: Path, remedy: str) -> Iterator[tuple[str, str]]:
    """The lines of a text file, each with the words that name it in a sentence. Raises InputError as `read_text`."""
    for number, line in enumerate(read_text(path, remedy).splitlines(), 1):
        yield f"{path}, line {number},", line
