"""The whole benchmark: cache, trainings and scores, each kept as soon as it is done, and one folder of results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.concepts.dictionaries.exchange import (
    concept_latents,
    detection,
    disentanglement,
    matched_latents,
)
from sae_lens_maira.concepts.dictionaries.noise import Comparison, compare
from sae_lens_maira.concepts.dictionaries.pairs import make_pairs, read_pairs
from sae_lens_maira.concepts.dictionaries.scores import CONTROLS, control_scores, study_scores
from sae_lens_maira.concepts.dictionaries.settings import DictionariesConfig
from sae_lens_maira.concepts.dictionaries.studies import StudyData
from sae_lens_maira.concepts.dictionaries.train import Dictionary, open_or_write_cache, trained
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.interruption import Interruption
from sae_lens_maira.results import Result, Units, write_result
from sae_lens_maira.sources import open_source

KIND = "dictionaries"
VERSION = 1
"""Raise it when a score changes its meaning; results of other versions are not mixed."""
