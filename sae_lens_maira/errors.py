"""Errors that a user can cause and fix: one base class, and one class per topic.

The message of a :class:`UserError` is one sentence that names the thing and the way out; the command line prints it
and exits with status 2. Any other exception is a bug in this package, and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: object) -> str:
    """A text on one line, fit for a terminal: what is not printable as its escape sequence (``\\x1b``, ``\\n``)."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


def printable_lines(text: str) -> str:
    """A text of several lines, fit for a terminal; its line breaks are kept."""
    return "\n".join(map(printable, text.split("\n")))


def quoted(value: object, longest: int = 80) -> str:
    """A foreign value as a message quotes it: printable, cut where it is long, between quotation marks."""
    text = str(value)
    return f"'{printable(text[:longest])}{'...' if len(text) > longest else ''}'"


class UserError(ValueError):
    """An input to this package is wrong; the message says what is wrong and what to do."""


class Problems:
    """Collects errors, so that everything that is wrong is told at once.

    Args:
        kind: of errors to collect; others are raised at once.
        n_shown: so many are told in words, and the others are counted.
    """

    def __init__(self, kind: type[UserError], n_shown: int = 10) -> None:
        self._kind, self._n_shown = kind, n_shown
        self._texts: list[str] = []
        self._n_problems = 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Go on after an error inside."""
        try:
            yield
        except self._kind as error:
            self._n_problems += 1
            if len(self._texts) < self._n_shown:
                self._texts.append(str(error))

    def check(self) -> None:
        """Raise what was noted, as one error."""
        if not self._n_problems:
            return
        more = self._n_problems - len(self._texts)
        texts = [*(text.removesuffix(".") for text in self._texts[:-1]), self._texts[-1]]
        if more:
            texts = [*(text.removesuffix(".") for text in texts), f"and {more} more."]
        raise self._kind("; ".join(texts))


class ConfigError(UserError):
    """A configuration is wrong; the message names the setting."""


class SourceError(UserError):
    """A source cannot be used; the message names what is wrong and the way out."""


class ManifestError(SourceError):
    """A manifest cannot be used; the message names the file and line."""


class PromptError(UserError):
    """A request to the model is not possible; the message says why and what to do."""


class ImageError(UserError):
    """An image cannot be used; the message names the field or file and says why."""


class StudyImageError(ImageError):
    """An image of a study cannot be used; the message names the study and says why.

    Args:
        index: the study's index in its source.
        study_id: its id.
        problem: a sentence that names the image.
    """

    def __init__(self, index: int, study_id: str, problem: str) -> None:
        super().__init__(f"Study {quoted(study_id)}, number {index} of its source, has an unusable image: {problem}")
        self.index, self.study_id, self.problem = index, study_id, problem


class MissingImageError(ImageError, FileNotFoundError):
    """There is no such image file; the message names it."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says what it is for and how to install it."""


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message says which and why."""


class HookPointError(UserError):
    """There is no such hook point; the message names similar ones."""


class RowError(UserError):
    """Rows do not fit the model, the studies or the context size; the message says how."""


class CacheError(UserError):
    """A cache cannot be used; the message names it and what is wrong."""


class CacheNotFound(CacheError, FileNotFoundError):
    """There is no cache in a folder; the message says how to make one."""


class CacheMismatch(CacheError):
    """A cache was made with another model, source or settings; the message says what differs."""


class DataExhausted(UserError):
    """A selection leaves no token; the message says what to change."""


class SaeFormatError(UserError):
    """A file is not a readable SAE, or is not safe to read; the message says why."""


class SaeMismatch(UserError):
    """An SAE belongs to another model, layer or token policy; the message says what differs."""


class ResultError(UserError):
    """A folder of results cannot be written or read; the message says why and what to do."""


class InterpretError(UserError):
    """Features cannot be explained or scored; the message says why and what to do."""


class DashboardError(UserError):
    """Dashboards cannot be made; the message says why and what to do."""


class ViewError(UserError):
    """A gallery cannot be served; the message says why and what to do."""


class AttributionError(UserError):
    """Features cannot be attributed; the message says why and what to do."""


class SteeringError(UserError):
    """A steering edit, where-clause or experiment cannot be used; the message says why and what to do."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped the work between two steps; finished work is kept, and the message says how to continue."""
