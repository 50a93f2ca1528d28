"""Maps against patching one patch at a time with the plain model, and against numbers known by hand."""

import numpy as np
import pytest
import torch

from sae_lens_maira.attribution.boxes import center_prior, patches_inside, read_boxes, score_boxes
from sae_lens_maira.attribution.checks import SHARES, agreement, curves, erase_boxes
from sae_lens_maira.attribution.erasing import OneImage, Target, load_image, mean_images
from sae_lens_maira.attribution.maps import METHODS, make_map
from sae_lens_maira.attribution.relevance import relevance_rules
from sae_lens_maira.data.study import Box, TokenKind
from sae_lens_maira.errors import AttributionError
from sae_lens_maira.hooked.embedded import embed_images, embed_prompt
from sae_lens_maira.maira2 import FindingsPrompt
from tests.plain_maira2 import first

FEATURES = (2, 5, 7)


@pytest.fixture(scope="module")
def averages(model, studies):
    return mean_images(model.vlm, studies)


@pytest.fixture(scope="module")
def target(model, reader, studies, averages):
    study = studies[1]
    prompt = embed_prompt(model.vlm, model.vlm.processor.encode(study, "prompt"), embed_images(model.vlm, [study])[0])
    position = len(prompt.kinds) - 1
    at = prompt.positions(TokenKind.FRONTAL_IMAGE)
    return Target(reader, prompt, position, at, load_image(model.vlm, study, "frontal"), averages["frontal"], FEATURES)


def plain_values(model, reader, study, *, pixels=None, patch_embeddings=None):
    """The features at the last token of a study with one image, from changed pixels or embeddings of it."""
    inputs = dict(
        model.processor(
            [FindingsPrompt(study.frontal, None, None, study.indication, study.technique, study.comparison)]
        )
    )
    if pixels is not None:
        inputs["pixel_values"] = pixels[None]
    seen = []
    handles = [
        model.maira2.model.language_model.layers[1].register_forward_hook(
            lambda _module, _args, output: seen.append(first(output))
        )
    ]
    if patch_embeddings is not None:
        handles.append(
            model.maira2.model.multi_modal_projector.register_forward_hook(
                lambda _module, _args, _output: patch_embeddings[None]
            )
        )
    with torch.no_grad():
        model.maira2(**inputs)
    for handle in handles:
        handle.remove()
    sae = reader.sae
    values = ((seen[0][0, -1] - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=1)
    return values.detach()[list(FEATURES)]


def test_occlusion_is_exact_patching_of_embeddings(model, reader, studies, averages, target):
    found = make_map(target, "occlusion")
    full = plain_values(model, reader, studies[1])
    for patch in (0, 7, len(target.image.embeddings) - 1):
        changed = target.image.embeddings.clone()
        changed[patch] = averages["frontal"].embeddings[patch]
        expected = full - plain_values(model, reader, studies[1], patch_embeddings=changed)
        torch.testing.assert_close(found[:, patch], expected, rtol=1e-3, atol=2e-4)


def test_pixel_occlusion_is_exact_patching_of_pixels(model, reader, studies, averages, target):
    found = make_map(target, "pixel_occlusion")
    full = plain_values(model, reader, studies[1])
    side = target.image.side
    size = target.image.pixels.shape[1] // side
    for patch in (0, side + 1):
        rows, columns = (slice(place * size, (place + 1) * size) for place in divmod(patch, side))
        pixels = target.image.pixels.clone()
        pixels[:, rows, columns] = averages["frontal"].pixels[:, rows, columns]
        expected = full - plain_values(model, reader, studies[1], pixels=pixels)
        torch.testing.assert_close(found[:, patch], expected, rtol=1e-3, atol=2e-4)


def test_the_gradient_is_the_limit_of_small_changes(target):
    """Central differences towards the mean image, one patch at a time, in double precision of the step's quotient."""
    found = make_map(target, "gradient")
    image, step = target.image.embeddings, 1e-2
    difference = image - target.average.embeddings
    for patch in (3, 10):
        moved = torch.zeros_like(image)
        moved[patch] = step * difference[patch]
        with torch.no_grad():
            above, below = target.values(torch.stack([image + moved, image - moved]))
        torch.testing.assert_close(found[:, patch], (above - below) / (2 * step), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(("method", "domain"), [("integrated_gradients", "embeddings"), ("pixel_gradients", "pixels")])
def test_integrated_gradients_sum_to_the_difference_from_the_mean_image(target, method, domain):
    found = make_map(target, method).sum(dim=1)
    masks = torch.stack([torch.zeros(len(target.image.embeddings)), torch.ones(len(target.image.embeddings))]).bool()
    full, none = target.values_without(masks, domain)
    torch.testing.assert_close(found, full - none, rtol=0.1, atol=0.05 * float((full - none).abs().max()))


def test_all_maps_have_one_value_per_patch_for_every_feature(target):
    for method in METHODS:
        found = make_map(target, method)
        assert found.shape == (len(FEATURES), len(target.image.embeddings))
        assert found.isfinite().all()
        assert not found.requires_grad


def test_many_features_at_once_are_those_features_alone(target):
    from dataclasses import replace

    together = make_map(target, "relp")
    for row, feature in enumerate(FEATURES):
        alone = make_map(replace(target, features=(feature,)), "relp")[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_relevance_rules_change_only_the_backward_pass(model, target):
    image = target.image.embeddings[None].clone().requires_grad_()
    plain = target.values(image)
    layers = model.vlm.layers(model.vlm.module)[:2]
    with relevance_rules(layers):
        ruled = target.values(image)
    torch.testing.assert_close(plain, ruled, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(values.sum(), image)[0] for values in (plain, ruled)]
    assert not torch.allclose(*gradients, rtol=0.05)
    assert torch.equal(target.values(image), plain)  # the rules are gone


def test_relevance_of_one_layer_is_the_linear_map_written_out():
    """One gated block with frozen factors: relevance is what its frozen linear map gives, computed by hand."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.input_norm = torch.nn.RMSNorm(4)
            self.q_proj, self.k_proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.gate_proj, self.up_proj = torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(4, 6, bias=False)
            self.act_fn = torch.nn.SiLU()
            self.down_proj = torch.nn.Linear(6, 4, bias=False)

        def forward(self, x):
            n = self.input_norm(x)
            weight = (self.q_proj(n) * self.k_proj(n)).sum(-1, keepdim=True).sigmoid()
            return weight * n + self.down_proj(self.act_fn(self.gate_proj(n)) * self.up_proj(n))

    torch.manual_seed(0)
    block = Block()
    x = torch.randn(1, 4, requires_grad=True)
    with relevance_rules([block]):
        out = block(x).sum()
    found = torch.autograd.grad(out, x)[0][0]
    with torch.no_grad():
        scale = (block.input_norm(x) / x)[0]
        n = block.input_norm(x)
        gate, up = block.gate_proj(n)[0], block.up_proj(n)[0]
        ratio = torch.sigmoid(gate)  # silu(g) / g
        weight = (block.q_proj(n) * block.k_proj(n)).sum().sigmoid()
        down = block.down_proj.weight.sum(dim=0)
        per_n = weight + 0.5 * (
            (down * up * ratio) @ block.gate_proj.weight + (down * gate * ratio) @ block.up_proj.weight
        )
        expected = per_n * scale
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_without_known_parts_are_refused():
    with (
        pytest.raises(AttributionError, match="knows no rules for layers of type Linear"),
        relevance_rules([torch.nn.Linear(2, 2)]),
    ):
        pass


def test_an_image_whose_patches_form_no_square_is_refused():
    with pytest.raises(AttributionError, match="12 tokens, which form no square"):
        _ = OneImage(torch.zeros(3, 4, 4), torch.zeros(12, 2)).side


# Checks of maps.


class LinearTarget(Target):
    """A feature that is a weighted sum of the patches that are left: its curves are known."""

    weights: torch.Tensor

    def __init__(self, weights):
        self.__dict__["weights"] = torch.tensor(weights, dtype=torch.float64)

    def values_without(self, masks, domain):
        return (self.weights * ~masks).sum(dim=1, keepdim=True)


def test_deletion_and_insertion_of_a_linear_feature_by_hand():
    weights = np.zeros(100)
    weights[:5] = [5, 4, 3, 2, 1]
    target = LinearTarget(weights)
    (right, wrong) = curves(target, np.stack([weights, -weights]), "pixels")
    # Shares 2, 5, 10, 20, 40 %: after two patches 6 of 15 are left, then nothing.
    assert right.deletion == pytest.approx((6 / 15 + 0 + 0 + 0 + 0) / len(SHARES))
    assert right.insertion == pytest.approx((9 / 15 + 1 + 1 + 1 + 1) / len(SHARES))
    assert wrong.deletion == pytest.approx(1.0)
    assert wrong.insertion == pytest.approx(0.0)


def test_curves_are_not_defined_where_the_image_lowers_the_feature():
    (found,) = curves(LinearTarget(np.full(100, -1.0)), np.ones((1, 100)), "pixels")
    assert np.isnan(found).all()


def test_erasing_a_box_and_as_much_elsewhere():
    weights = np.zeros(64)
    weights[[9, 10]] = [3, 1]
    inside = np.zeros(64, dtype=bool)
    inside[9] = True
    found = erase_boxes(LinearTarget(weights), inside, "pixels", np.random.default_rng(0))
    assert found.inside == pytest.approx(0.25)
    assert found.outside >= 0.75
    assert np.isnan(erase_boxes(LinearTarget(weights), ~inside, "pixels", np.random.default_rng(0)).inside)


def test_agreement_is_pearsons_correlation():
    rng = np.random.default_rng(0)
    first_map, second = rng.normal(size=(2, 3, 20))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(first_map, second, strict=True)]
    np.testing.assert_allclose(agreement(first_map, second), expected)
    assert np.isnan(agreement(np.ones((1, 5)), second[:1, :5])).all()


def test_patches_that_boxes_overlap():
    inside = patches_inside([Box(0.0, 0.5, 0.3, 0.76), Box(0.9, 0.0, 1.0, 0.25)], 4).reshape(4, 4)
    assert inside.tolist() == [
        [False, False, False, True],
        [False, False, False, False],
        [True, True, False, False],
        [True, True, False, False],
    ]


def test_scores_of_a_map_by_hand():
    inside = np.array([True, True, False, False])
    scores = score_boxes(np.array([3.0, -1.0, 1.0, 0.0]), inside)
    assert scores == (0.5, 1.0, 0.75, 1 / 3)  # the two largest are 0 and 2
    flat = score_boxes(np.array([-1.0, -2.0, -3.0, -4.0]), inside)
    assert (flat.energy, flat.pointing, flat.iou) == (0.5, 1.0, 1.0)


def test_the_center_prior_falls_from_the_middle():
    prior = center_prior(8).reshape(8, 8)
    assert np.allclose(prior, prior[::-1])
    assert np.allclose(prior, prior.T)
    assert prior.max() == prior[3, 3]
    assert prior.min() == prior[0, 0]


def test_boxes_of_a_table():
    rows = [
        {"study_id": "a", "label": "edema", "x_min": 0.1, "y_min": 0.2, "x_max": "0.3", "y_max": 0.4},
        {"study_id": "a", "label": "edema", "x_min": 0.5, "y_min": 0.5, "x_max": 0.6, "y_max": 0.6},
    ]
    assert read_boxes(rows) == {"a": {"edema": [Box(0.1, 0.2, 0.3, 0.4), Box(0.5, 0.5, 0.6, 0.6)]}}
