"""One setting's value: read from text, checked by pydantic against its type, with a one-sentence error."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from sae_lens_maira.errors import ConfigError, UserError, printable, quoted


def convert(hint: Any, value: Any, name: str, error: type[UserError] = ConfigError) -> Any:
    """Convert a value to its type: a list to a tuple, and 1e4 to 10000 if the type is a whole number.

    Args:
        hint: the type, as in an annotation.
        value: the value that was given.
        name: the setting's name, for the error message.
        error: the error's class.

    Raises:
        UserError: the value is of another type, none of the choices or outside the limits.
    """
    if isinstance(value, bool) and {int, float} & set(members_of(hint)) and bool not in members_of(hint):
        raise error(f"{name} is '{str(value).lower()}'; it must be {describe_type(hint)}.")
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as problem:
        raise error(_sentence(hint, value, name, problem)) from None


def check_names(values: Iterable[str], known: Iterable[str], prefix: str) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: the message names the first unknown setting and similar known ones.
    """
    names = list(known)
    for name in values:
        if name not in names:
            raise unknown_name(str(name), names, prefix)


def unknown_name(name: str, known: Sequence[str], prefix: str = "", what: str = "setting") -> ConfigError:
    """The error for an unknown name; it suggests similar known names."""
    close = difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(prefix + match for match in close)}?" if close else "."
    return ConfigError(f"Unknown {what} {quoted(prefix + name)}{hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's settings as plain values; names are not checked.

    Raises:
        ConfigError: the file is missing or broken.
    """
    try:
        values = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no configuration '{path}'.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration '{path}' cannot be read ({printable(error)}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"'{path}' is not valid YAML ({printable(' '.join(str(error).split()))}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' holds no settings.")
    return values


def read_value(text: str, hint: Any = Any) -> Any:
    """Read a value from a command line as YAML; if the type is text, it is not changed."""
    members = members_of(hint)
    if text == "null" and type(None) in members:
        return None
    if str in members or Path in members or any(get_origin(member) is Literal for member in members):
        return text
    try:
        return _load(text)
    except yaml.YAMLError:
        return text


def describe_type(hint: Any) -> str:
    """A type in words: ``a whole number or null``."""
    return " or ".join(dict.fromkeys(_words(member) for member in members_of(hint)))


def choices_of(hint: Any) -> tuple[str, ...]:
    """The choices of a ``Literal``, also if it is inside a list or optional."""
    choices: list[str] = []
    for member in members_of(hint):
        if get_origin(member) is Literal:
            choices += get_args(member)
        elif get_origin(member) in (tuple, list):
            choices += choices_of(get_args(member)[0])
    return tuple(choices)


def either(choices: Sequence[str]) -> str:
    """``a, b or c``."""
    return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else "".join(choices)


def members_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself, without annotations."""
    if get_origin(hint) is Annotated:
        return members_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for argument in get_args(hint) for member in members_of(argument))
    return (hint,)


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 has it; refuses aliases, by which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases such as *name are not read; write the value again",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def _load(text: str) -> Any:
    """Plain values.

    Raises:
        YAMLError: the text is no YAML, asks for more than plain values, or is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, LookupError, AttributeError, OverflowError) as error:  # a month 13, or `!!int ""`
        raise yaml.YAMLError(f"a value is not what its form or tag says: {error}") from error


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config={"arbitrary_types_allowed": True})


def _sentence(hint: Any, value: Any, name: str, problem: ValidationError) -> str:
    first = problem.errors()[0]
    context = first.get("ctx", {})
    if first["type"] == "literal_error":
        return f"{name} {quoted(first['input'])} is unknown; choose {either(choices_of(hint))}."
    for limit, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if limit in context:
            return f"{name} is {value}; it must be {words} {context[limit]}."
    if get_origin(hint) is dict:
        return f"'{name}' must be a group of settings, not {quoted(value)}."
    return f"{name} is {quoted(value)}; it must be {describe_type(hint)}."


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    names |= {type(None): "null", list: "a list", tuple: "a list", dict: "a group of settings"}
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return names.get(get_origin(hint) or hint, "of another type")
