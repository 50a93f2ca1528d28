"""The arguments of a verb: a verb is a function, and the types of its parameters are its command line.

A parameter whose type derives from :class:`~sae_lens_maira.settings.Settings` holds the verb's own options. One of type
``Overrides[C]`` holds settings that override a YAML file: every setting of ``C`` is also an argument, by its name in
the file, such as ``--model.dtype bfloat16``. Types, defaults and sentences come from the dataclasses; argparse
splits the arguments and writes the help.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from typing_extensions import override

from sae_lens_maira.cli.help import Argument, describe_arguments
from sae_lens_maira.errors import ConfigError, UserError
from sae_lens_maira.setting_values import members_of, read_value, read_yaml, unknown_name
from sae_lens_maira.settings import Settings, overlay, settings_of

C = TypeVar("C", bound=Settings)


@dataclass(frozen=True)
class Overrides(Generic[C]):
    """Settings from a command line.

    Args:
        kind: the class whose settings they are.
        values: as nested plain values.
    """

    kind: type[C]
    values: dict[str, Any]

    def over(self, path: Path) -> C:
        """Override a YAML file with them.

        Raises:
            UserError: the file is missing or broken, or a setting is unknown or wrong.
        """
        return self.kind.from_dict(overlay(read_yaml(path), self.values))


def read_arguments(name: str, verb: Callable[..., None], given: Sequence[str], epilog: str = "") -> dict[str, Any]:
    """The values of a verb's parameters; ``--help`` prints and exits.

    Args:
        name: the verb's name.
        verb: the function; the help starts with its docstring.
        given: the arguments after the verb's name.
        epilog: text at the end of the help.

    Raises:
        UserError: an argument is unknown, missing or wrong.
    """
    kinds = _parameters(verb)
    arguments: dict[str, Argument] = {}
    for parameter, (kind, is_override) in kinds.items():
        for argument in _arguments(parameter, kind, is_override):
            if argument.flag in arguments:
                arguments[argument.flag].variants.extend(argument.variants)
            else:
                arguments[argument.flag] = argument
    parser = _Parser(prog=f"sae-lens-maira {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = epilog
    describe_arguments(parser, verb, arguments.values())
    values: dict[str, dict[str, Any]] = {parameter: {} for parameter in kinds}
    for flag, text in vars(parser.parse_args(_normalized(parser, arguments, list(given)))).items():
        argument = arguments[flag]
        target = values[argument.parameter]
        for group in argument.path[:-1]:
            target = target.setdefault(group, {})
        target[argument.path[-1]] = _value(argument, text)
    return {
        parameter: Overrides(kind, values[parameter]) if is_override else kind.from_dict(values[parameter])
        for parameter, (kind, is_override) in kinds.items()
    }


def check_out(path: Path) -> None:
    """Refuse a folder that cannot be written to, before anything is loaded.

    Raises:
        ConfigError: the folder, or the nearest one above it that exists, is a file or is not writable.
    """
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ConfigError(f"--out is '{path}', but '{nearest}' is a file; choose another folder.")
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"--out is '{path}', but '{nearest}' is not writable; choose another folder.")


def check_sae_folder(path: Path, error: type[UserError]) -> None:
    """Refuse a folder without an SAE, before anything is loaded.

    Args:
        path: the folder.
        error: to raise.

    Raises:
        UserError: a file is missing.
    """
    for name in ("cfg.json", "sae_weights.safetensors"):
        if not (path / name).is_file():
            raise error(f"There is no SAE in '{path}' ({name} is missing); give the folder that training wrote.")


def _parameters(verb: Callable[..., None]) -> dict[str, tuple[type[Any], bool]]:
    """The class of each parameter, and whether its values override a file's."""
    hints = {name: hint for name, hint in get_type_hints(verb).items() if name != "return"}
    return {
        name: (get_args(hint)[0], True) if get_origin(hint) is Overrides else (hint, False)
        for name, hint in hints.items()
    }


def _arguments(
    parameter: str, kind: type[Any], is_override: bool, path: tuple[str, ...] = (), default: Any = None, tag: str = ""
) -> Iterator[Argument]:
    for setting in settings_of(kind):
        inner = (*path, setting.field)
        for group in setting.groups:
            name = group.kind if len(setting.groups) > 1 else ""
            yield from _arguments(parameter, group, is_override, inner, setting.default, name)
        if not setting.groups:
            is_option = not is_override and not path
            flag = setting.field.upper() if setting.positional else f"--{'.'.join(inner)}"
            value = getattr(default, setting.field) if isinstance(default, kind) else setting.default
            variant = (tag, setting, value, kind)
            yield Argument(flag.replace("_", "-") if is_option else flag, parameter, inner, is_option, [variant])


def _normalized(parser: _Parser, arguments: dict[str, Argument], given: list[str]) -> Iterable[str]:
    """The arguments with each name in its canonical spelling; a value that looks like a name is joined by ``=``."""
    flags = {_key(flag): flag for flag in arguments if flag.startswith("--")} | {"help": "--help"}
    free = {f"{_key(flag)}.": argument for flag, argument in arguments.items() if argument.setting.is_free_group}
    result: list[str] = []
    while given:
        token = given.pop(0)
        name, equals, value = token.partition("=")
        if not name.startswith("--") or name == "--":
            result.append(token)
            continue
        key = _key(name)
        group = next((prefix for prefix in free if key.startswith(prefix) and len(key) > len(prefix)), None)
        if group is not None and key not in flags:
            flags[key] = f"--{key}"
            arguments[f"--{key}"] = Argument(f"--{key}", free[group].parameter, tuple(key.split(".")), False)
            parser.add_argument(f"--{key}", dest=f"--{key}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        flag = flags.get(key) or flags.get(f"{key}.name")
        if f"{key}." in free:
            raise ConfigError(f"{name} is a group of settings; write {name}.NAME VALUE.")
        if flag is None:
            raise unknown_name(name[2:], [known[2:] for known in flags.values()], "--")
        if not equals and flag in arguments and arguments[flag].is_switch:
            equals, value = "=", given.pop(0) if given and given[0].lower() in ("true", "false") else "true"
        elif not equals and given and re.match(r"-\.?\d", given[0]):
            equals, value = "=", given.pop(0)
        result.append(f"{flag}{equals}{value}")
    return result


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _value(argument: Argument, text: Any) -> Any:
    if not argument.variants:
        return read_value(text)
    hint = argument.setting.hint
    if not argument.is_list:
        return read_value(text, hint)
    whole = read_value(text[0]) if len(text) == 1 else None
    if isinstance(whole, list) or text == ["null"]:
        return whole
    (element,) = [get_args(member)[0] for member in members_of(hint) if get_origin(member) in (tuple, list)]
    return [read_value(part, element) for part in text]


class _Parser(argparse.ArgumentParser):
    """Reports errors as this package does."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    @override
    def error(self, message: str) -> NoReturn:
        lacking = re.match(r"argument (\S+): expected", message)
        if lacking:
            raise ConfigError(f"{lacking[1]} lacks a value.")
        extra = re.match(r"unrecognized arguments: (\S+)", message)
        raise ConfigError(f"'{extra[1]}' is not a setting; write --name value." if extra else message)
