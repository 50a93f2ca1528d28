"""The ``--help`` of a verb: every setting with its choices, default and sentence."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field
from typing import Any, get_origin

from sae_lens_maira.setting_values import choices_of, members_of
from sae_lens_maira.settings import Setting


@dataclass(frozen=True)
class Argument:
    """One argument of a verb.

    Args:
        flag: as users write it; without dashes if it is positional.
        parameter: of the verb's function.
        path: of the setting, in nested plain values.
        is_option: whether it exists on the command line only, and not in a YAML file.
        variants: for each kind of group that has the setting: the kind's name (empty where there is only one), the
            setting, its default, the group's class. Empty for a setting that another library names.
    """

    flag: str
    parameter: str
    path: tuple[str, ...]
    is_option: bool
    variants: list[tuple[str, Setting, Any, type[Any]]] = field(default_factory=list)

    @property
    def setting(self) -> Setting:
        """The setting in the first kind; its type is the same in all kinds."""
        return self.variants[0][1]

    @property
    def is_switch(self) -> bool:
        """Whether its value may be omitted, which means true."""
        return bool(self.variants) and self.setting.hint is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return any(get_origin(member) in (tuple, list) for member in members_of(self.setting.hint))


def describe_arguments(
    parser: argparse.ArgumentParser, verb: Callable[..., None], arguments: Iterable[Argument]
) -> None:
    """Add every argument to the parser, group by group."""
    arguments = list(arguments)
    places = "".join(f"{argument.flag} " for argument in arguments if not argument.flag.startswith("--"))
    parser.usage = f"%(prog)s {places}[--NAME VALUE ...]"
    summary = inspect.cleandoc(verb.__doc__ or "").partition("\n\nRaises:")[0].partition("\n\nArgs:")[0]
    parser.description = textwrap.fill(summary.replace("``", ""), 78)
    groups: dict[tuple[str, ...], Any] = {}
    for argument in arguments:
        is_free = argument.setting.is_free_group
        key = (argument.parameter, *(argument.path if is_free else argument.path[:-1]))
        if key not in groups:
            groups[key] = _group(parser, argument)
        if not is_free:
            _add(groups[key], argument)


def sentence(text: str) -> str:
    """A docstring's sentence as help shows it."""
    return text.replace("``", "").rstrip(".")


def _group(parser: argparse.ArgumentParser, argument: Argument) -> Any:
    names = argument.path if argument.setting.is_free_group else argument.path[:-1]
    if argument.setting.is_free_group:
        text = f"{sentence(argument.setting.text)}. Written --{'.'.join(names)}.NAME VALUE."
        return parser.add_argument_group(names[-1], textwrap.fill(text, 76))
    if names:
        return parser.add_argument_group(names[-1])
    if not argument.is_option:
        return parser.add_argument_group("settings", "Settings of the YAML file; values given here override it.")
    return parser


def _add(group: Any, argument: Argument) -> None:
    choices = [choice for _, setting, _, _ in argument.variants for choice in choices_of(setting.hint)]
    members = members_of(argument.setting.hint)
    metavar = argument.path[-1].upper()
    if choices:
        metavar = "{" + ",".join(dict.fromkeys(choices)) + "}"
    elif bool in members or int in members or float in members:
        metavar = "true|false" if bool in members else "N"
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(argument).replace("%", "%%")}
    if argument.is_list:
        options["nargs"] = "+"
    elif argument.is_switch and argument.is_option:
        metavar = ""
    if not argument.flag.startswith("--"):
        group.add_argument(argument.flag, nargs="?", metavar=argument.flag, **options)
    else:
        group.add_argument(argument.flag, dest=argument.flag, metavar=metavar, **options)


def _help(argument: Argument) -> str:
    if argument.path[-1] == "kind":
        return "; ".join(f"{name}: {sentence(_summary(kind))}" for name, _, _, kind in argument.variants)
    told: dict[str, list[str]] = {}
    for name, setting, default, _ in argument.variants:
        told.setdefault(f"{sentence(setting.text)}{_default(default)}", []).append(name)
    if len(told) == 1 and "" in next(iter(told.values())):
        return next(iter(told))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in told.items())


def _default(value: Any) -> str:
    if value is MISSING:
        return " (required)"
    if value is None or value == "":
        return ""
    shown = f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else value
    return f" (default: {str(shown).lower() if isinstance(value, bool) else shown})"


def _summary(kind: type[Any]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
