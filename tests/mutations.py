"""Changes metadata as a damaged, a foreign or a hostile file would: every key, absent or with a value that is wrong."""

import copy
import json
import math

from common.system.errors import InputError

DEEP = "deep"  # is replaced in the text: Python cannot write what is nested so deeply
VALUES = {
    "absent": None, "null": None, "text": "x\x1b[2J", "list": [], "table": {}, "negative": -1, "huge": 10**30,
    "NaN": math.nan, "deep": DEEP,
}  # fmt: skip
OTHERS = {"number": 3.5, "whole": 7, "zero": 0, "true": True, "huge float": 1e300, "infinity": math.inf, "empty": ""}


def places(content, loc=()):
    """The place of every key, and of the first entry of every list."""
    entries = content.items() if isinstance(content, dict) else enumerate(content[:1])
    for key, value in entries:
        yield (*loc, key)
        if isinstance(value, dict | list):
            yield from places(value, (*loc, key))


def changed(content, loc, name):
    """The content with another value in one place."""
    content = copy.deepcopy(content)
    parent = content
    for key in loc[:-1]:
        parent = parent[key]
    if name == "absent":
        del parent[loc[-1]]
    else:
        parent[loc[-1]] = (VALUES | OTHERS)[name]
    return content


def text_of(content):
    """JSON, with the extensions that Python reads."""
    return json.dumps(content).replace(f'"{DEEP}"', "[" * 10_000 + "]" * 10_000)


def mutations(content, skip=()):
    """(what was changed, the JSON text) for every place and value. skip: keys of which nothing is changed."""
    for loc in places(content):
        if loc[0] not in skip:
            for name in VALUES:
                yield f"{'.'.join(map(str, loc))} {name}", text_of(changed(content, loc, name))


def answered(read, where, *arguments):
    """Whether `read` refuses: in one sentence that names `where`; anything else than an InputError is raised."""
    try:
        read(*arguments)
    except InputError as error:
        told = str(error)
        assert str(where) in told, told
        assert told.isprintable(), repr(told)
        assert len(told) < 1000, told
        return True
    return False
