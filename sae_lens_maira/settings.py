"""Settings: frozen dataclasses that define the settings in Python, YAML files and the command line.

1. A group of settings is a dataclass that derives from :class:`Settings`. A field's name, type and default are one line
   of code. Its description is under ``Args:`` of the docstring, which errors and ``--help`` quote.
2. Each value is checked against the field's type whenever a group is made, so that a choice or a limit is written only
   in the annotation; :meth:`Settings.check` refuses combinations of values.
3. A field whose type is a union of groups is a closed choice between them; the field ``kind`` of each group names it.
4. :meth:`Settings.from_dict` makes a group from plain values; :func:`overlay` combines a YAML file and a command line.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_origin, get_type_hints

from annotated_types import Ge, Le
from typing_extensions import Self

from sae_lens_maira.errors import ConfigError, UserError, quoted
from sae_lens_maira.setting_values import check_names, convert, either, members_of

AtLeastZero: TypeAlias = Annotated[int, Ge(0)]
AtLeastOne: TypeAlias = Annotated[int, Ge(1)]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
DtypeName: TypeAlias = Literal["float32", "bfloat16", "float16"]


class Settings:
    """A group of settings; see the module's docstring.

    Attributes:
        GROUP: prefix of a setting's name in errors, such as ``model.``; ``--`` for settings that exist only on the
            command line.
        ERROR: the class of the group's errors.
    """

    GROUP: ClassVar[str] = ""
    ERROR: ClassVar[type[UserError]] = ConfigError

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            object.__setattr__(self, setting.field, _checked(setting, getattr(self, setting.field), self.ERROR))
        self.check()

    def check(self) -> None:
        """Refuse combinations of values that are not allowed."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make the group from plain values, as in a YAML file.

        Raises:
            UserError: a setting is unknown, missing or wrong; the message names it.
        """
        return _build((cls,), values, cls.GROUP.rstrip("."))

    def to_dict(self) -> dict[str, Any]:
        """The inverse of :meth:`from_dict`: plain values, as in a YAML file."""
        return {setting.field: _plain(getattr(self, setting.field)) for setting in settings_of(type(self))}


@dataclass(frozen=True)
class ModelConfig(Settings):
    """A model, and the devices on which it runs.

    Args:
        name: a checkpoint folder, a Hub id, or ``phantom`` for the model that comes with this package.
        revision: branch, tag or commit of a Hub id.
        dtype: data type of the weights; ``auto`` is bfloat16 on a GPU, and the checkpoint's own dtype elsewhere.
        device: device of the SAE, and of the model if there is no ``device_map``; ``auto`` takes a GPU if there is one.
        device_map: spreads the model over several devices, as in transformers.
    """

    GROUP = "model."

    name: str = "phantom"
    revision: str | None = None
    dtype: DtypeName | Literal["auto"] = "float32"
    device: str = "auto"
    device_map: str | None = None

    def find_device(self) -> str:
        """The device that ``device`` names.

        Raises:
            ConfigError: there is no such device.
        """
        import torch

        has_gpu = torch.cuda.is_available()
        if self.device == "auto":
            return "cuda" if has_gpu else "cpu"
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            raise ConfigError(f"model.device '{self.device}' is unknown; choose auto, cpu, cuda or cuda:1.") from None
        if kind == "cuda" and not has_gpu:
            raise ConfigError(f"model.device is {self.device}, but PyTorch finds no GPU here; choose auto or cpu.")
        return self.device


@dataclass(frozen=True)
class Setting:
    """One field of a group.

    Args:
        field: the field's name in the dataclass.
        name: the setting's name in errors and help, with its group: ``model.dtype``.
        hint: the field's type.
        default: ``MISSING`` for a setting that must be given.
        text: the setting's description.
        positional: whether it is a positional argument of the command line.
    """

    field: str
    name: str
    hint: Any
    default: Any
    text: str
    positional: bool

    @property
    def groups(self) -> tuple[type[Any], ...]:
        """The groups that its value may be; empty if the value is not a group."""
        return tuple(kind for kind in members_of(self.hint) if isinstance(kind, type) and issubclass(kind, Settings))

    @property
    def is_free_group(self) -> bool:
        """Whether it is a mapping whose names are defined by another library."""
        return get_origin(self.hint) is dict


@cache
def settings_of(kind: type[Any]) -> tuple[Setting, ...]:
    """The settings of a group, in order."""
    texts = _sentences(kind)
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        Setting(
            field=entry.name,
            name=_name(kind, entry),
            hint=hints[entry.name],
            default=entry.default if entry.default_factory is MISSING else entry.default_factory(),
            text=texts.get(entry.name, ""),
            positional="positional" in entry.metadata,
        )
        for entry in dataclasses.fields(kind)
    )


def overlay(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, overridden by others; if a group is given another ``kind``, its earlier settings are dropped."""
    result = dict(values)
    for name, value in given.items():
        below = result.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            same_kind = "kind" not in below or value.get("kind", below["kind"]) == below["kind"]
            result[name] = overlay(below, value) if same_kind else dict(value)
        elif isinstance(value, Mapping) and below is not None:
            raise ConfigError(
                f"'{name}' is no group of settings but {quoted(below)}; write {name}: and its settings below."
            )
        else:
            result[name] = value
    return result


def _build(kinds: tuple[type[Any], ...], values: Any, name: str, default: Any = MISSING) -> Any:
    """Make the group that plain values describe; settings that they lack come from the default."""
    if isinstance(values, kinds):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(f"'{name}' must be a group of settings, not {quoted(values)}.")
    if isinstance(default, Settings):
        values = overlay({name: default.to_dict()}, {name: values})[name]
    kind = _chosen(kinds, values)
    known = {setting.field: setting for setting in settings_of(kind)}
    _refuse_settings_of_other_kinds(kinds, kind, values)
    check_names(values, known, kind.GROUP)
    missing = [setting for setting in known.values() if setting.default is MISSING and setting.field not in values]
    if len(missing) == 1:
        raise kind.ERROR(f"{missing[0].name} is missing: {missing[0].text}")
    if missing:
        what = "The command" if kind.GROUP == "--" else "The configuration"
        raise kind.ERROR(f"{what} lacks {', '.join(setting.name for setting in missing)}.")
    made: dict[str, Any] = {}
    for field, value in values.items():
        setting = known[field]
        made[field] = _build(setting.groups, value, setting.name, setting.default) if setting.groups else value
    return kind(**made)


def _chosen(kinds: tuple[type[Any], ...], values: Mapping[str, Any]) -> type[Any]:
    if len(kinds) == 1:
        return kinds[0]
    by_name = {kind.kind: kind for kind in kinds}
    name = values.get("kind", kinds[0].kind)
    if not isinstance(name, str) or name not in by_name:
        raise kinds[0].ERROR(f"{kinds[0].GROUP}kind {quoted(name)} is unknown; choose {either(list(by_name))}.")
    return by_name[name]


def _refuse_settings_of_other_kinds(kinds: tuple[type[Any], ...], kind: type[Any], values: Mapping[str, Any]) -> None:
    own = [setting.field for setting in settings_of(kind)]
    elsewhere = {setting.field for other in kinds for setting in settings_of(other)} - set(own)
    for field in values:
        if field in elsewhere:
            listed = ", ".join(name for name in own if name != "kind")
            raise kind.ERROR(f"{kind.GROUP}{field} means nothing to kind {kind.kind}; its settings are {listed}.")


def _checked(setting: Setting, value: Any, error: type[UserError]) -> Any:
    if not setting.groups:
        return convert(setting.hint, value, setting.name, error)
    if not isinstance(value, setting.groups):
        raise error(f"'{setting.name}' must be a group of settings, not {quoted(value)}.")
    return value


def _name(kind: type[Any], entry: dataclasses.Field[Any]) -> str:
    if kind.GROUP != "--":
        return kind.GROUP + entry.name
    return entry.name.upper() if "positional" in entry.metadata else f"--{entry.name.replace('_', '-')}"


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _sentences(kind: type[Any]) -> dict[str, str]:
    """Description of each field, from ``Args:`` of the docstrings of its class and base classes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found |= dict(arguments_of(base.__doc__ or ""))
    return found


def arguments_of(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and descriptions under ``Args:`` of a docstring."""
    _, _, section = inspect.cleandoc(docstring).partition("Args:\n")
    block = re.match(r"(?: {4}.*(?:\n|$))*", section)
    for entry in re.split(r"\n(?= {4}\w)", block[0].rstrip() if block else ""):
        name, _, text = entry.strip().partition(":")
        if name:
            yield name.split(" ")[0], " ".join(text.split())
