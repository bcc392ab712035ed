"""The distillation terms on maps whose answer is known, their weights over a run, and the student's views."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from barnsight_export.distill.augment import PLAIN, Augmentation, flip, view
from barnsight_export.distill.losses import (
    Weights,
    attention_loss,
    cosine_loss,
    direction_loss,
    four_terms,
    intermediate_loss,
    level_terms,
    magnitude_loss,
    relative_terms,
    scale_loss,
    weighted_sum,
)
from barnsight_export.distill.schedule import weights_at

PAPER = Weights()


def maps(seed: int = 0, channels: int = 8, strength: float = 1.0) -> torch.Tensor:
    return strength * torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(seed))


# Terms


def test_a_perfect_student_loses_nothing() -> None:
    terms = four_terms(maps(), maps())
    assert all(value.item() == pytest.approx(0, abs=1e-6) for value in terms.values())
    assert attention_loss(maps(), maps()).item() == 0
    assert intermediate_loss(maps(), maps()).item() == 0


def test_direction_knows_no_length_and_repeats_the_cosine_by_two_over_the_width() -> None:
    student, teacher = maps(0), maps(1)
    assert direction_loss(3 * student, teacher).item() == pytest.approx(direction_loss(student, teacher).item())
    assert direction_loss(student, teacher).item() == pytest.approx(2 / 8 * cosine_loss(student, teacher).item())


def test_cosine_of_known_directions() -> None:
    right, up = torch.tensor([1.0, 0.0])[None, :, None, None], torch.tensor([0.0, 5.0])[None, :, None, None]
    assert cosine_loss(right, up).item() == pytest.approx(1)
    assert cosine_loss(right, -right).item() == pytest.approx(2)


def test_scale_compares_deviation_and_mean_of_channels_and_not_where_they_stand() -> None:
    teacher = maps(1)
    moved = teacher.flip(2, 3)  # the same values in other cells
    assert scale_loss(moved, teacher).item() == pytest.approx(0, abs=1e-6)
    assert scale_loss(teacher + 2, teacher).item() == pytest.approx(4, rel=1e-4)
    wide = teacher - teacher.mean((2, 3), keepdim=True)
    expected = (wide.std((2, 3), correction=0) ** 2).mean().item()
    assert scale_loss(2 * wide, wide).item() == pytest.approx(expected, rel=1e-3)


def test_a_constant_channel_has_a_finite_gradient() -> None:
    student = torch.zeros(1, 2, 3, 3, requires_grad=True)
    torch.autograd.backward(scale_loss(student, maps(channels=2)[:1, :, :3, :3]))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_magnitude_is_the_mean_square() -> None:
    assert magnitude_loss(torch.full((1, 2, 2, 2), 3.0), torch.full((1, 2, 2, 2), 1.0)).item() == 4


def test_attention_looks_where_the_energy_is_at_any_width_and_grid() -> None:
    teacher = torch.zeros(1, 6, 4, 4)
    teacher[:, :, :2, :2] = 1  # all energy in the upper left quarter
    same, other = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    same[:, :, 0, 0], other[:, :, 1, 1] = 7, 7
    assert attention_loss(same, teacher).item() == pytest.approx(0, abs=1e-6)
    assert attention_loss(other, teacher).item() == pytest.approx(2)


def test_an_inner_map_that_is_all_wrong_loses_one() -> None:
    assert intermediate_loss(torch.zeros(2, 8, 4, 4), maps(1)).item() == pytest.approx(1)


@pytest.mark.parametrize("term", ["direction", "cosine", "scale", "magnitude"])
def test_every_term_is_the_mean_over_pictures(term: str) -> None:
    """So that a batch divided among processes has the gradient of the whole."""
    student, teacher = maps(0), maps(1)
    single = [four_terms(student[k : k + 1], teacher[k : k + 1])[term].item() for k in range(2)]
    assert four_terms(student, teacher)[term].item() == pytest.approx(sum(single) / 2, rel=1e-5)


# Levels


def test_one_level_keeps_the_papers_units() -> None:
    student, teacher = maps(0), maps(1, strength=5)
    found = level_terms({"trunk": student}, {"trunk": teacher}, {"trunk": 1.0})
    assert found["magnitude"].item() == magnitude_loss(student, teacher).item()


def test_no_level_dominates_by_its_strength_or_its_width() -> None:
    weak = relative_terms(maps(0, 8), maps(1, 8))
    strong = relative_terms(maps(0, 8, 100), maps(1, 8, 100))
    for name, value in weak.items():
        assert strong[name].item() == pytest.approx(value.item(), rel=1e-3), name
    narrow, wide = (relative_terms(maps(0, c), -maps(0, c))["direction"].item() for c in (4, 64))
    assert narrow == pytest.approx(4, rel=1e-4)  # 2 (1 - cos) of opposite vectors
    assert wide == pytest.approx(4, rel=1e-4)


def test_levels_count_by_their_weights() -> None:
    teacher = {"d1": maps(0), "t1": maps(1)}
    student = {"d1": maps(0), "t1": -maps(1)}
    even = level_terms(student, teacher, {"d1": 1.0, "t1": 1.0})
    uneven = level_terms(student, teacher, {"d1": 3.0, "t1": 1.0})
    assert even["cosine"].item() == pytest.approx(1)
    assert uneven["cosine"].item() == pytest.approx(0.5)


def test_a_term_of_weight_zero_is_left_out_even_if_it_is_no_number() -> None:
    terms = {"cosine": torch.tensor(2.0), "magnitude": torch.tensor(math.inf)}
    assert weighted_sum(terms, Weights(cosine=0.5, magnitude=0.0)).item() == 1


# Schedule


def test_the_paper_holds_its_weights() -> None:
    assert weights_at("fixed", PAPER, 0.0) == weights_at("fixed", PAPER, 1.0) == Weights(1.0, 0.5, 0.3, 0.1)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.15, 0.0), (0.3, 0.5), (0.45, 1.0), (1.0, 1.0)], ids=str)
def test_direction_comes_first_and_scale_fades_in(progress: float, share: float) -> None:
    found = weights_at("direction-then-scale", PAPER, progress)
    assert (found.direction, found.cosine) == (1.0, 0.5)
    assert found.scale == pytest.approx(0.3 * share)
    assert found.magnitude == pytest.approx(0.1 * share)


# Views


def picture() -> torch.Tensor:
    return torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def test_the_plain_view_is_the_picture() -> None:
    torch.testing.assert_close(view(picture(), torch.from_numpy(np.stack([PLAIN, PLAIN]))), picture())


def test_only_mirrored_views_are_mirrored_and_their_maps_with_them() -> None:
    views = torch.from_numpy(np.stack([PLAIN, PLAIN]))
    views[1, 4] = 1
    found = view(picture(), views)
    torch.testing.assert_close(found[0], picture()[0])
    torch.testing.assert_close(found[1], picture()[1].flip(2))
    features = maps()
    torch.testing.assert_close(flip(features, views)[1], features[1].flip(2))


def test_each_factor_does_its_part() -> None:
    gray = torch.full((1, 3, 2, 2), 0.4)
    color = torch.tensor([0.6, 0.3, 0.2])[None, :, None, None].expand(1, 3, 2, 2)

    def seen(image: torch.Tensor, **changes: float) -> torch.Tensor:
        names = ("brightness", "contrast", "saturation", "hue", "flip")
        values = [changes.get(name, float(PLAIN[k])) for k, name in enumerate(names)]
        return view(image, torch.tensor([values]))

    torch.testing.assert_close(seen(gray, brightness=1.2), torch.full((1, 3, 2, 2), 0.48))
    torch.testing.assert_close(seen(gray, contrast=0.5), gray)
    pale = seen(color, saturation=0.0)
    assert (pale.amax(1) - pale.amin(1)).max().item() < 1e-6
    turned = seen(color, hue=0.5)
    assert turned[0, 0, 0, 0] < turned[0, 2, 0, 0]  # red became blue
    torch.testing.assert_close(seen(gray, hue=0.02), gray, atol=2e-3, rtol=0)


def test_views_are_drawn_within_reach_and_by_seed() -> None:
    draws = np.stack([Augmentation().draw(np.random.default_rng(k)) for k in range(200)])
    assert (np.abs(draws[:, :4] - [1, 1, 1, 0]) <= np.float32([0.2, 0.2, 0.1, 0.02]) + 1e-6).all()
    assert 60 < draws[:, 4].sum() < 140
    np.testing.assert_array_equal(draws[3], Augmentation().draw(np.random.default_rng(3)))
