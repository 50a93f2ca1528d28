"""Edits of activations: of one latent of an SAE, or along a direction.

An edit is a pure function of the activations x that returns a *change* to add to them. With a_f the activation of
latent f and d_f its decoder row, an edit of a latent changes x by (target - a_f) d_f. So what the SAE does not explain
(its error term) stays as it is, and nothing is replaced by a reconstruction.

| edit | target of a_f, or change of x |
| --- | --- |
| ``Add(f, dose)`` | a_f + dose s_f; needs no encoder |
| ``Clamp(f, dose)`` | dose s_f |
| ``Scale(f, factor)`` | factor a_f |
| ``Cap(f, dose)`` | min(a_f, dose s_f) |
| ``Ablate(f)`` | 0 |
| ``AddDirection(v, dose)`` | x + dose v |
| ``ScaleDirection(v, factor)`` | x + (factor - 1) <x, u> u with u = v / norm(v); a factor of 0 projects v out |

A dose counts in units of the latent's own strength s_f, a high percentile of its positive activations
(:mod:`sae_lens_maira.hooked.dictionary`). All latents are read from the same x, so the order of edits does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import assert_never

from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked.dictionary import Dictionary


@dataclass(frozen=True)
class Add:
    """Add to a latent: the decoder row times ``dose`` strengths."""

    feature: int
    dose: float
    hook: str | None = None


@dataclass(frozen=True)
class Clamp:
    """Set a latent to ``dose`` strengths."""

    feature: int
    dose: float
    hook: str | None = None


@dataclass(frozen=True)
class Scale:
    """Multiply a latent by a factor."""

    feature: int
    factor: float
    hook: str | None = None


@dataclass(frozen=True)
class Cap:
    """Let a latent be at most ``dose`` strengths."""

    feature: int
    dose: float
    hook: str | None = None


@dataclass(frozen=True)
class Ablate:
    """Set a latent to 0."""

    feature: int
    hook: str | None = None


@dataclass(frozen=True, eq=False)
class AddDirection:
    """Add ``dose`` times any vector of shape (d_in,)."""

    direction: Tensor
    dose: float = 1.0
    hook: str | None = None


@dataclass(frozen=True, eq=False)
class ScaleDirection:
    """Multiply the component of the activations along a vector of shape (d_in,) by a factor; 0 projects it out."""

    direction: Tensor
    factor: float = 0.0
    hook: str | None = None


LatentEdit: TypeAlias = Add | Clamp | Scale | Cap | Ablate
Edit: TypeAlias = LatentEdit | AddDirection | ScaleDirection

_CLAMP, _SCALE, _CAP = range(3)


@dataclass(frozen=True)
class RowEdits:
    """The edits of several rows at one hook point, as tensors.

    Args:
        constant: what is added to each row, whatever its activations are.
        dictionary: the SAE of the latents.
        latents: entries (row, feature, operation).
        values: value of each entry: a target, a factor or a limit.
        directed: the row of each entry along a direction.
        units: direction of each such entry, of norm 1.
        factors: factor minus 1 of each such entry.
    """

    constant: Float[Tensor, "rows d_in"]
    dictionary: Dictionary | None
    latents: Int[Tensor, "n_latents 3"]
    values: Float[Tensor, " n_latents"]
    directed: Int[Tensor, " n_directed"]
    units: Float[Tensor, "n_directed d_in"]
    factors: Float[Tensor, " n_directed"]

    def change(self, x: Float[Tensor, "rows positions d_in"]) -> Float[Tensor, "rows positions d_in"]:
        """What the edits add to activations, all of them taken to be edited."""
        given, x = x, x.to(self.constant)
        total = self.constant[:, None].expand_as(x)
        if len(self.latents):
            rows, features, operations = self.latents.unbind(1)
            needed, place = rows.unique(return_inverse=True)
            chosen, column = features.unique(return_inverse=True)
            assert self.dictionary is not None
            found = self.dictionary.activations(x[needed], chosen)
            activations = found[place, :, column]
            targets = self._targets(activations, operations)
            decoder = self.dictionary.decoder[features].to(x)
            total = total.index_add(0, rows, (targets - activations)[..., None] * decoder[:, None])
        if len(self.directed):
            along = torch.einsum("npd,nd->np", x[self.directed], self.units)
            moved = (self.factors[:, None] * along)[..., None] * self.units[:, None]
            total = total.index_add(0, self.directed, moved)
        return total.to(given)

    def select(self, rows: Int[Tensor, " _"]) -> RowEdits:
        """The edits of some rows, in their order, repeated if a row is named repeatedly."""
        entries, owners = (self.latents[:, :1] == rows).nonzero().unbind(1)
        directed, directed_owners = (self.directed[:, None] == rows).nonzero().unbind(1)
        return replace(
            self,
            constant=self.constant[rows],
            latents=torch.cat([owners[:, None], self.latents[entries, 1:]], dim=1),
            values=self.values[entries],
            directed=directed_owners,
            units=self.units[directed],
            factors=self.factors[directed],
        )

    def _targets(
        self, activations: Float[Tensor, "n_latents positions"], operations: Int[Tensor, " n_latents"]
    ) -> Float[Tensor, "n_latents positions"]:
        values, code = self.values[:, None], operations[:, None]
        scaled = torch.where(code == _SCALE, activations * values, torch.minimum(activations, values))
        return torch.where(code == _CLAMP, values.expand_as(activations), scaled)


@dataclass
class _Entries:
    """Edits at one hook point while they are collected."""

    constants: list[tuple[int, Tensor]] = field(default_factory=list)
    latents: list[tuple[int, int, int]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    directed: list[tuple[int, Tensor, float]] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)


def compile_rows(
    rows: Sequence[Sequence[Edit]], dictionaries: Mapping[str, Dictionary], d_in: int, device: torch.device | str
) -> dict[str, RowEdits]:
    """The edits of several rows as tensors, by hook point.

    Args:
        rows: the edits of each row; a row without any is not changed.
        dictionaries: the SAE at each hook point.
        d_in: width of the activations.
        device: device of the tensors.

    Raises:
        SteeringError: a latent is unknown or edited twice, a dose is not finite, a direction has another width or is
            zero, or there is no SAE at the hook point.
    """
    found: dict[str, _Entries] = {}
    for row, edits in enumerate(rows):
        for edit in edits:
            hook = _hook_of(edit, dictionaries)
            entries = found.setdefault(hook, _Entries())
            if isinstance(edit, AddDirection | ScaleDirection):
                _add_direction(entries, row, edit, d_in)
            else:
                _add_latent(entries, row, edit, dictionaries[hook], hook)
    return {hook: _tensors(entries, len(rows), dictionaries.get(hook), d_in, device) for hook, entries in found.items()}


def no_edits(n_rows: int, dictionary: Dictionary | None, d_in: int, device: torch.device | str) -> RowEdits:
    """Rows that are not changed."""
    return _tensors(_Entries(), n_rows, dictionary, d_in, device)


def _hook_of(edit: Edit, dictionaries: Mapping[str, Dictionary]) -> str:
    needs_sae = not isinstance(edit, AddDirection | ScaleDirection)
    if edit.hook is not None:
        if needs_sae and edit.hook not in dictionaries:
            raise SteeringError(
                f"{edit} is at '{edit.hook}', but the SAE's hook point is {' or '.join(dictionaries) or 'none'}; "
                "leave hook out, or give the SAE of that hook point."
            )
        return edit.hook
    if len(dictionaries) != 1:
        what = "no SAE was given" if not dictionaries else f"there are SAEs at {', '.join(dictionaries)}"
        raise SteeringError(f"An edit does not say its hook point and {what}; give the edit's hook.")
    return next(iter(dictionaries))


def _add_latent(entries: _Entries, row: int, edit: LatentEdit, dictionary: Dictionary, hook: str) -> None:
    if not 0 <= edit.feature < dictionary.d_sae:
        raise SteeringError(
            f"There is no latent {edit.feature} in the SAE at '{hook}'; it has latents 0 to {dictionary.d_sae - 1}."
        )
    if (row, edit.feature) in entries.seen:
        raise SteeringError(f"Latent {edit.feature} at '{hook}' is edited twice; give one edit for it.")
    entries.seen.add((row, edit.feature))
    value = 0.0 if isinstance(edit, Ablate) else edit.factor if isinstance(edit, Scale) else edit.dose
    _check_finite(value, f"latent {edit.feature}")
    strength = float(dictionary.strengths[edit.feature])
    if not strength and value and not isinstance(edit, Scale):
        raise SteeringError(
            f"Latent {edit.feature} at '{hook}' never fired where strengths were measured, so its doses have no unit; "
            "give its strength, or another latent."
        )
    match edit:
        case Add():
            if value:
                entries.constants.append((row, dictionary.decoder[edit.feature] * (value * strength)))
            return
        case Clamp() | Ablate():
            operation, value = _CLAMP, value * strength
        case Cap():
            operation, value = _CAP, value * strength
        case Scale():
            operation = _SCALE
        case _:
            assert_never(edit)
    entries.latents.append((row, edit.feature, operation))
    entries.values.append(value)


def _add_direction(entries: _Entries, row: int, edit: AddDirection | ScaleDirection, d_in: int) -> None:
    if edit.direction.shape != (d_in,):
        raise SteeringError(
            f"A direction has shape {tuple(edit.direction.shape)}; the activations need ({d_in},), the model's width."
        )
    vector = edit.direction.detach().float()
    value = edit.dose if isinstance(edit, AddDirection) else edit.factor
    _check_finite(value, "a direction")
    norm = float(vector.norm())
    if not math.isfinite(norm) or norm == 0:
        raise SteeringError("A direction is zero or not finite; give a vector that points somewhere.")
    if isinstance(edit, AddDirection):
        if value:
            entries.constants.append((row, vector * value))
    else:
        entries.directed.append((row, vector / norm, value - 1))


def _check_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise SteeringError(f"The dose of {what} is {value}; give a finite number.")


def _tensors(
    entries: _Entries, n_rows: int, dictionary: Dictionary | None, d_in: int, device: torch.device | str
) -> RowEdits:
    constant = torch.zeros(n_rows, d_in, device=device)
    for row, vector in entries.constants:
        constant[row] += vector.to(constant)
    units = [unit for _, unit, _ in entries.directed]
    return RowEdits(
        constant,
        dictionary,
        torch.tensor(entries.latents, dtype=torch.long, device=device).reshape(-1, 3),
        torch.tensor(entries.values, dtype=torch.float32, device=device),
        torch.tensor([row for row, _, _ in entries.directed], dtype=torch.long, device=device),
        torch.stack(units).to(constant) if units else constant.new_zeros(0, d_in),
        torch.tensor([factor for *_, factor in entries.directed], dtype=torch.float32, device=device),
    )
