"""Stage 1 of the training: the vision tower learns to see, on labels, before any language is involved.

MAIRA-2 uses a pretrained image encoder (RAD-DINO) and keeps it frozen; the phantom has to train its own. Linear heads
on the mean of the patch features learn what is present, how large and how faint it is, and where its boxes are; a
linear head on each patch learns which concepts it shows. The heads are thrown away afterwards. What remains is a tower
whose features encode all this linearly, so that the projector and the language model can read it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from sae_lens_maira.phantom.model.architecture import IMAGE_MEAN, IMAGE_STD
from sae_lens_maira.phantom.training.pool import LATERAL_STEMS, MAX_PARTS, Pool
from sae_lens_maira.phantom.world.concepts import VISIBLE

_LATERAL_SHARE = 0.12


class VisionHeads(nn.Module):
    """Linear heads on the tower's features, for training only."""

    def __init__(self, d_vision: int) -> None:
        super().__init__()
        n = len(VISIBLE)
        self.appearance = nn.Linear(d_vision, n * 3)
        self.boxes = nn.Linear(d_vision, n * MAX_PARTS * 4)
        self.lateral = nn.Linear(d_vision, len(LATERAL_STEMS))
        self.patches = nn.Linear(d_vision, n)


def to_pixel_values(pixels: UInt8[Tensor, "n_images height width"]) -> Float[Tensor, "n_images 3 height width"]:
    """What the processor makes of stretched 8-bit images: normalized, three channels."""
    plane = (pixels.float() / 255.0 - IMAGE_MEAN) / IMAGE_STD
    return plane[:, None].expand(-1, 3, -1, -1)


def vision_batch(pool: Pool, seed: tuple[int, ...], batch_size: int) -> tuple[Tensor, np.ndarray]:
    """Slightly augmented pixel values of a random batch, and its rows of the pool; a function of the seed."""
    rng = np.random.default_rng(seed)
    frontals, laterals = np.flatnonzero(~pool.is_lateral), np.flatnonzero(pool.is_lateral)
    n_laterals = min(round(batch_size * _LATERAL_SHARE), len(laterals))
    rows = np.concatenate([rng.choice(frontals, batch_size - n_laterals), rng.choice(laterals, n_laterals)])
    values = to_pixel_values(torch.from_numpy(pool.pixels[rows]))
    n = len(rows)
    contrast = torch.from_numpy(rng.uniform(0.9, 1.1, (n, 1, 1, 1)).astype(np.float32))
    brightness = torch.from_numpy(rng.uniform(-0.1, 0.1, (n, 1, 1, 1)).astype(np.float32))
    grain = rng.standard_normal((n, 1, *values.shape[2:]), dtype=np.float32) * rng.uniform(0, 0.06, (n, 1, 1, 1))
    return values * contrast + brightness + torch.from_numpy(grain.astype(np.float32)), rows


def vision_loss(
    features: Float[Tensor, "n_images n_patches d_vision"], heads: VisionHeads, pool: Pool, rows: np.ndarray
) -> Tensor:
    """The weighted sum of the heads' losses, each a mean over the images and concepts that it applies to."""
    is_lateral = torch.from_numpy(pool.is_lateral[rows])
    mean = features.mean(dim=1)
    frontal_rows = rows[~pool.is_lateral[rows]]
    frontal, n = mean[~is_lateral], len(VISIBLE)

    look = torch.from_numpy(pool.appearance[frontal_rows])
    logits = heads.appearance(frontal).view(-1, n, 3)
    present = look[..., 0]
    loss = 24.0 * F.binary_cross_entropy_with_logits(logits[..., 0], present)
    details = F.binary_cross_entropy_with_logits(logits[..., 1:], look[..., 1:], reduction="none")
    loss = loss + 0.5 * (details * present[..., None]).sum() / present.sum().clamp(min=1.0)

    target = torch.from_numpy(pool.boxes[frontal_rows])
    has_box = (target.sum(-1) > 0).float()
    errors = F.smooth_l1_loss(heads.boxes(frontal).view_as(target), target, reduction="none", beta=0.05).mean(-1)
    loss = loss + 4.0 * (errors * has_box).sum() / has_box.sum().clamp(min=1.0)

    covered = patch_cover(target, round(features.shape[1] ** 0.5))
    loss = loss + 24.0 * F.binary_cross_entropy_with_logits(heads.patches(features[~is_lateral]), covered)
    if is_lateral.any():
        shown = torch.from_numpy(pool.lateral[rows[pool.is_lateral[rows]]])
        loss = loss + 4.0 * F.binary_cross_entropy_with_logits(heads.lateral(mean[is_lateral]), shown)
    return loss


def patch_cover(
    boxes: Float[Tensor, "n_images n_concepts n_parts 4"], side: int
) -> Float[Tensor, "n_images n_patches n_concepts"]:
    """1 where a patch touches a box of the concept; patches are in row-major order, ``side`` per row."""
    centers = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    half = 0.5 / side
    x_min, y_min, x_max, y_max = boxes[..., None, :].unbind(-1)
    exists = (boxes.sum(-1) > 0)[..., None]
    across = (centers >= x_min - half) & (centers <= x_max + half) & exists
    down = (centers >= y_min - half) & (centers <= y_max + half)
    cover = (down[..., :, None] & across[..., None, :]).any(dim=2)
    return cover.flatten(2).transpose(1, 2).float()


@torch.no_grad()
def pool_features(tower: nn.Module, pool: Pool, batch_size: int = 128) -> Float[Tensor, "n_images n_patches d_vision"]:
    """Patch features (without CLS) of every image of the pool, in half precision."""
    out = []
    for start in range(0, len(pool.pixels), batch_size):
        values = to_pixel_values(torch.from_numpy(pool.pixels[start : start + batch_size]))
        out.append(tower(values).feature_maps[-1][:, 1:].half())
    return torch.cat(out)


@torch.no_grad()
def presence_f1(tower: nn.Module, heads: VisionHeads, pool: Pool, rows: np.ndarray) -> float:
    """Micro-F1 of the presence head on some frontal rows of the pool, at a probability threshold of one half."""
    values = to_pixel_values(torch.from_numpy(pool.pixels[rows]))
    mean = tower(values).feature_maps[-1][:, 1:].mean(dim=1)
    said = heads.appearance(mean).view(len(rows), -1, 3)[..., 0] > 0
    true = torch.from_numpy(pool.appearance[rows][..., 0]) > 0
    return 2.0 * float((said & true).sum()) / max(1.0, float(said.sum() + true.sum()))
