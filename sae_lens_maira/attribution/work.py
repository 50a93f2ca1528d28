"""What every part of an attribution works on, and how its units are computed: one per study, kept when finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.attribution.settings import AttributionConfig
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import Interrupted
from sae_lens_maira.interruption import noticed_interruptions
from sae_lens_maira.measures.splits import split_patients
from sae_lens_maira.results import Units


@dataclass(frozen=True)
class Work:
    """The parts of one run.

    Args:
        reader: reads the features.
        studies: the studies; all have findings.
        config: the settings.
        units: where finished parts are kept.
    """

    reader: FeatureReader
    studies: list[Study]
    config: AttributionConfig
    units: Units

    @property
    def patients(self) -> list[str]:
        """The patient of each study."""
        return [study.patient_id for study in self.studies]

    def parts(self) -> dict[str, list[int]]:
        """Indices of the studies to choose on, and of the studies of other patients, which are reported."""
        share = self.config.chosen_share
        found = split_patients(self.patients, {"chosen": share, "reported": 1 - share}, self.config.seed)
        return {name: indices.tolist() for name, indices in found.items()}

    def each(self, what: str, indices: Sequence[int], compute: Callable[[int], Any]) -> list[Any]:
        """The units of some studies, computed if they are not there yet.

        Args:
            what: name of the units, and of the progress bar.
            indices: of the studies.
            compute: makes the plain values of one unit.

        Raises:
            Interrupted: Ctrl-C; finished units are kept.
        """
        from tqdm import tqdm

        missing = [index for index in indices if not self.units.is_done(f"{what}-{index:06d}")]
        with noticed_interruptions("Stopping after this study; the same command goes on from there.") as stop:
            for done, index in enumerate(tqdm(missing, desc=what, disable=not missing)):
                self.units.write(f"{what}-{index:06d}", compute(index))
                if stop.made and done + 1 < len(missing):
                    raise Interrupted(
                        f"interrupted with {len(missing) - done - 1} studies of '{what}' left; the same command goes on"
                    )
        return [self.units.read(f"{what}-{index:06d}") for index in indices]
