"""Losses of a DETR with masks, and the aids that make it learn from few pictures.

Matching and boxes: DETR (Carion et al. 2020), GIoU (Rezatofighi et al. 2019). Scores: IoU-aware BCE (Align-DETR, Cai et
al. 2022). Aids that stand in training only: one-to-many matching on queries that skip self-attention (DAC-DETR, Hu et
al. 2023), denoising queries (DN-DETR, Li et al. 2022; DINO, Zhang et al. 2023), a dense head on the encoder's tokens
(CenterNet, Zhou et al. 2019), and prototypes, the masks that an animal's mean pixel embedding draws.

Where the network computes in half precision, its scores and masks are judged in single.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from barnsight_export.networks.sam3 import Decoded, DetectorConfig, Pixels, Proposals, Proposer, Queries, Sam3
from barnsight_export.train.samples import IGNORED, TARGET, Batch

BACKGROUND, UNJUDGED = -1, -2  # what a query is matched to, besides the number of a target

_CLASS, _L1, _GIOU, _PRESENCE, _MASK, _DICE = 2.0, 5.0, 2.0, 1.0, 5.0, 5.0
_DENOISING = 0.5
_PROTOTYPE = 0.5
_RIVAL = 4.0  # weight of a pixel of another animal in a mask's BCE
_DENSE_BOX, _ON_ANIMAL = 2.0, 0.4  # weight of a token's box; share of the token that an animal must cover
_PER_OBJECT, _FIT_FLOOR = 4, 0.4  # one-to-many: queries an object, and how well they must fit
_DENOISED_OBJECTS = 16
_GROUPS = 3  # two of positives, one of negatives


class Aids(nn.Module):
    """The parameters that exist for training only; a detector that starts from proposals has its own proposer."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.noised = nn.Parameter(torch.randn(config.width) * 0.5)
        self.proposer = None if config.proposals else Proposer(config.width)


class Denoising(NamedTuple):
    """Reference boxes around the truth: (B, 3D, 4), and what each is matched to, (B, 3D)."""

    boxes: Tensor
    matched: Tensor


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of broadcast boxes, normalized cxcywh."""
    a_low, a_high = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    b_low, b_high = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1)
    iou = shared / union.clamp(min=1e-7)
    return iou, iou - (hull - union) / hull.clamp(min=1e-7)


@torch.no_grad()
def match_one_to_one(logits: Tensor, boxes: Tensor, batch: Batch) -> Tensor:
    """The cheapest one-to-one assignment per layer and picture: (L, B, Q), (L, B, Q, 4) -> (L, B, Q)."""
    pairs = boxes.unsqueeze(3), batch.boxes[None, :, None]
    _, giou = overlaps(*pairs)  # (L, B, Q, N)
    cost = -2 * logits.sigmoid().sqrt().unsqueeze(-1) + 5 * (pairs[0] - pairs[1]).abs().sum(-1) - 2 * giou
    matched, cost = _background(boxes, batch).cpu(), cost.nan_to_num().cpu()  # a loss that is no number tells so itself
    for row, kinds in enumerate(batch.kinds.cpu()):
        targets = (kinds == TARGET).nonzero().squeeze(1)
        for layer in range(len(logits)):
            queries, columns = linear_sum_assignment(cost[layer, row][:, targets].numpy())
            matched[layer, row, torch.from_numpy(queries)] = targets[torch.from_numpy(columns)]
    return matched.to(boxes.device)


@torch.no_grad()
def match_one_to_many(logits: Tensor, boxes: Tensor, batch: Batch) -> Tensor:
    """Every object takes the queries that fit it well by p^0.3·IoU^0.7: (L, B, Q), (L, B, Q, 4) -> (L, B, Q).

    The best one is taken however badly it fits: without a single match all scores would sink, and never rise again.
    """
    iou, _ = overlaps(boxes.unsqueeze(3), batch.boxes[None, :, None])  # (L, B, Q, N)
    fit = logits.sigmoid().pow(0.3).unsqueeze(-1) * iou.pow(0.7)
    fit = fit.masked_fill((batch.kinds != TARGET)[None, :, None], 0.0)
    ranked = fit.topk(_PER_OBJECT, dim=2).values  # (L, B, 4, N)
    threshold = torch.minimum(ranked[:, :, -1:].clamp(min=_FIT_FLOOR), ranked[:, :, :1])
    best, objects = torch.where(fit >= threshold, fit, 0.0).max(dim=3)
    return torch.where(best > 0, objects, _background(boxes, batch))


def noise_boxes(batch: Batch) -> Denoising:
    """Boxes shifted a little (to be corrected) and a lot (to be rejected) around up to D targets a picture.

    Chance is drawn on the CPU, so that a run is the same on every device.
    """
    (size, most), device = batch.kinds.shape, batch.kinds.device
    order = torch.rand(size, most).to(device).masked_fill(batch.kinds != TARGET, -1.0)
    chance, chosen = order.topk(min(_DENOISED_OBJECTS, most), dim=1)  # (B, D)
    chosen = chosen.repeat(1, _GROUPS)
    truth = batch.boxes.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))
    negative = torch.arange(_GROUPS, device=device).repeat_interleave(chance.shape[1]) == _GROUPS - 1
    shift = (torch.rand(*truth.shape) * torch.where(torch.rand(*truth.shape) < 0.5, -1.0, 1.0)).to(device)
    strength = torch.where(negative[:, None], 0.5 * shift.sign() + 0.5 * shift, 0.5 * shift)
    low = truth[..., :2] - truth[..., 2:] / 2 * (1 + strength[..., :2])
    high = truth[..., :2] + truth[..., 2:] / 2 * (1 + strength[..., 2:])
    corners = torch.cat([torch.minimum(low, high), torch.maximum(low, high)], dim=-1).clamp(0, 1)
    boxes = torch.cat([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], dim=-1)
    matched = torch.where(negative, BACKGROUND, chosen)
    return Denoising(boxes, torch.where(chance.repeat(1, _GROUPS) < 0, UNJUDGED, matched))


def detection_loss(model: Sam3, aids: Aids, images: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Forward pass and total loss of a batch, with the parts for the log."""
    detector = model.detector
    text = model.concepts[batch.concepts]
    d4, d2, d1 = model.encoder(images)[:3]
    tokens = detector.encode(d1, text)
    start = detector.start(tokens)
    denoising = noise_boxes(batch)
    noised = aids.noised.expand(*denoising.boxes.shape[:2], -1)
    extra = Queries(torch.cat([start.content, noised], 1), torch.cat([start.boxes, denoising.boxes], 1))
    decoded = detector.decode(tokens, text, start, extra)
    logits = detector.score(decoded.states, text).float()  # (L, B, T)

    queries = detector.config.queries
    groups = [queries, queries, denoising.boxes.shape[1]]
    outputs = list(zip(torch.split(logits, groups, 2), torch.split(decoded.boxes, groups, 2), strict=True))
    own, copied, _ = outputs
    matches = (
        match_one_to_one(*own, batch),
        match_one_to_many(*copied, batch),
        denoising.matched.expand(len(logits), -1, -1),
    )
    losses: dict[str, Tensor] = {}
    parts = zip(("", "many_", "noise_"), (1.0, 1.0, _DENOISING), outputs, matches, strict=True)
    for name, weight, (scores, boxes), matched in parts:
        for term, value in _box_losses(scores, boxes, matched, batch).items():
            losses[name + term] = weight * value

    pixels = detector.embed_pixels(d4, d2, d1, tokens, text)
    first_noised = denoising.matched[:, : denoising.boxes.shape[1] // _GROUPS]
    losses.update(_mask_losses(model, decoded, pixels, matches[0], first_noised, batch))
    losses["presence"] = _PRESENCE * presence_loss(decoded.presence.float(), batch.kinds)
    proposer = detector.proposer or aids.proposer
    assert proposer is not None
    losses["dense"] = _dense_loss(proposer(tokens), batch)
    total = torch.stack(list(losses.values())).sum()
    return total, {name: value.item() for name, value in losses.items()}


def _background(boxes: Tensor, batch: Batch) -> Tensor:
    """Background everywhere but on ignored animals, where a query is not judged: (L, B, Q)."""
    iou, _ = overlaps(boxes.unsqueeze(3), batch.boxes[None, :, None])
    on_ignored = ((iou > 0.3) & (batch.kinds == IGNORED)[None, :, None]).any(3)
    return torch.where(on_ignored, UNJUDGED, BACKGROUND)


def _box_losses(logits: Tensor, boxes: Tensor, matched: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Class, L1 and GIoU losses of one group of queries, summed over layers, per matched query of a layer."""
    positive = matched >= 0
    count = max(1.0, float(positive.sum()) / len(matched))
    truth = batch.boxes.expand(len(matched), -1, -1, -1).gather(
        2, matched.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, 4)
    )
    found, truth, scores = boxes[positive], truth[positive], logits[positive]  # (P, 4), (P, 4), (P,)
    iou, giou = overlaps(found, truth)
    quality = (scores.sigmoid().pow(0.25) * iou.clamp(min=0).pow(0.75)).detach()
    negatives = logits[matched == BACKGROUND]
    class_loss = (
        F.binary_cross_entropy_with_logits(scores, quality, reduction="sum")
        + (negatives.sigmoid().square() * F.softplus(negatives)).sum()
    )
    return {
        "class": _CLASS * class_loss / count,
        "l1": _L1 * (found - truth).abs().sum() / count,
        "giou": _GIOU * (1 - giou).sum() / count,
    }


def _mask_losses(
    model: Sam3, decoded: Decoded, pixels: Pixels, matched: Tensor, noised: Tensor, batch: Batch
) -> dict[str, Tensor]:
    """Masks of the last two layers, denoised boxes and prototypes, and the semantic map, on every second pixel."""
    row, column = torch.randint(2, (2,)).tolist()
    truth = batch.masks[..., row::2, column::2].float() / 255  # (B, N, h, w)
    instance = pixels.instance[..., row::2, column::2].flatten(2)  # (B, C, hw)
    semantic = pixels.semantic[..., row::2, column::2].float()
    queries = matched.shape[2]
    states = torch.cat(
        [
            decoded.states[-2:, :, :queries].transpose(0, 1).flatten(1, 2),
            decoded.states[-1][:, 2 * queries : 2 * queries + noised.shape[1]],
        ],
        dim=1,
    )
    wanted = torch.cat([matched[-2:].transpose(0, 1).flatten(1), noised], dim=1)  # (B, 2Q + D)
    chosen = wanted >= 0
    picture, _ = chosen.nonzero(as_tuple=True)
    logits = (model.detector.mask_decoder.mask_embedder(states) @ instance)[chosen]  # (M, hw)
    masks = truth[picture, wanted[chosen]].flatten(1)

    target = batch.kinds == TARGET
    animal = (truth * target[..., None, None]).amax(1)  # (B, h, w)
    judged = (truth * (batch.kinds == IGNORED)[..., None, None]).amax(1) < 0.5
    return {
        **outline_losses(logits, masks, animal.flatten(1)[picture]),
        **prototype_losses(instance, truth.flatten(2), target, animal.flatten(1)),
        "semantic": semantic_loss(semantic.flatten(1), animal.flatten(1), judged.flatten(1)),
    }


def presence_loss(presence: Tensor, kinds: Tensor) -> Tensor:
    """BCE of logits (L, B), by the kinds (B, N) of a picture's animals; one of ignored animals alone is not judged."""
    present, ignored = (kinds == TARGET).any(1), (kinds == IGNORED).any(1)
    wanted, judged = (value.float().expand_as(presence) for value in (present, present | ~ignored))
    return F.binary_cross_entropy_with_logits(presence, wanted, judged)


def semantic_loss(logits: Tensor, animal: Tensor, judged: Tensor) -> Tensor:
    """BCE and Dice losses of the semantic map (B, hw) on the pixels `judged`: to be drawn is `animal`, in 0..1."""
    wrong = F.binary_cross_entropy_with_logits(logits[judged], animal[judged])
    return wrong + dice(logits.masked_fill(~judged, -torch.inf), animal * judged).mean()


def prototype_losses(instance: Tensor, truth: Tensor, target: Tensor, animal: Tensor) -> dict[str, Tensor]:
    """Mask losses of prototypes: (B, C, hw) embeddings, (B, N, hw) masks in 0..1, (B, N) which of them count.

    `animal` (B, hw) is the union of those that count.

    A prototype is the mean embedding of one animal's pixels. Asking it to draw that animal tells the embeddings to
    differ between animals that touch, however good the queries are by then.
    """
    share = truth / truth.sum(2, keepdim=True).clamp(min=1)  # (B, N, hw)
    prototypes = share @ instance.transpose(1, 2)  # (B, N, C)
    losses = outline_losses((prototypes @ instance)[target], truth[target], animal[:, None].expand_as(truth)[target])
    return {f"prototype_{name}": _PROTOTYPE * loss for name, loss in losses.items()}


def outline_losses(logits: Tensor, masks: Tensor, animals: Tensor) -> dict[str, Tensor]:
    """BCE and Dice losses of masks, per mask: logits (M, hw), truth (M, hw), and all animals of its picture (M, hw).

    A mask that is wrong seldom covers floor, and often the animal beside its own, of the same coat: that weighs more.
    """
    count, logits = max(1, len(masks)), logits.float()
    weight = 1 + (_RIVAL - 1) * (animals - masks).clamp(min=0)
    wrong = F.binary_cross_entropy_with_logits(logits, masks, weight, reduction="none")
    return {
        "mask": _MASK * wrong.mean(1).sum() / count,
        "dice": _DICE * dice(logits, masks).sum() / count,
    }


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice overlap of each row: (M, hw), (M, hw) -> (M,)."""
    found = logits.sigmoid()
    return 1 - (2 * (found * masks).sum(1) + 1) / (found.sum(1) + masks.sum(1) + 1)


def _dense_loss(proposals: Proposals, batch: Batch) -> Tensor:
    """Center heat map, and the animal's box at every token that lies on it.

    The heat map's loss is CenterNet's penalty-reduced focal loss. The boxes are FCOS's (Tian et al. 2019): a token that
    knows where its animal ends is what the decoder's attention can read a better box from.
    """
    score = proposals.centers.float()
    target, ignored = batch.kinds == TARGET, batch.kinds == IGNORED
    share = F.avg_pool2d(batch.masks.float() / 255, batch.masks.shape[-1] // proposals.grid[1]).flatten(2)  # (B, N, hw)
    rows, columns = (torch.arange(side, device=score.device) for side in proposals.grid)
    sides = torch.tensor(proposals.grid[::-1], device=score.device)  # x, y
    cells = torch.minimum((batch.boxes[..., :2] * sides).long(), sides - 1)  # (B, N, 2)
    sigma = ((batch.boxes[..., 2:] * sides).amin(-1) / 6).clamp(min=0.4)[..., None]
    along_x = torch.exp(-((columns - cells[..., :1]) ** 2) / (2 * sigma**2))  # (B, N, w)
    along_y = torch.exp(-((rows - cells[..., 1:]) ** 2) / (2 * sigma**2))  # (B, N, h)
    heat = (along_y[..., :, None] * along_x[..., None, :] * target[..., None, None]).amax(1).flatten(1)  # (B, hw)
    hit = -F.logsigmoid(score) * (1 - score.sigmoid()).square()
    miss = F.softplus(score) * score.sigmoid().square() * (1 - heat) ** 4
    miss = miss.masked_fill((share * ignored[..., None]).amax(1) > 0, 0.0)
    count = max(1, int(target.sum()))
    focal: Tensor = torch.where(heat >= 1, hit, miss).sum() / count

    covered, owner = (share * target[..., None]).max(1)  # (B, hw)
    inside = covered > _ON_ANIMAL
    size = torch.zeros_like(target, dtype=torch.float32).scatter_add_(1, owner, inside.float())  # (B, N) tokens
    weight = (1 / size.gather(1, owner).clamp(min=1))[inside]  # (P,), every animal counts alike
    boxes = proposals.boxes[inside]  # (P, 4)
    truth = batch.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))[inside]
    _, giou = overlaps(boxes, truth)
    wrong = _L1 * (boxes - truth).abs().sum(1) + _GIOU * (1 - giou)
    located: Tensor = _DENSE_BOX * (weight * wrong).sum() / weight.sum().clamp(min=1)
    return focal + located
