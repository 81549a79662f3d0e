"""Self-supervised distillation: the teacher's similarities between images and transformed views.

Xu, Liu, Li, Loy: Knowledge Distillation Meets Self-Supervision. ECCV 2020, arXiv 2006.07114.

    similarity  T² · mean_i KL(softmax(A_t / T) ‖ softmax(A_s / T))_i over kept rows i, T = 0.5
                A_ij = cos(h(x̃_i), h(x_j)) of view i and image j; h a layer pair on pooled features
    kd, views   T² · mean over pixels of KL(p_t ‖ p_s), T = 4, on the images, and on their views
    head of the teacher, beforehand:  −mean_i log (exp A_ii / Σ_j exp A_ij)

Taps: ``head`` and the logits of both. ``prepare`` adds to each image its transformed view, which
both networks see and which counts as an image without labels. In the paper rows are images in
batches of 64; a batch of scenes has few, so here a row is a class region in one image (``nodes``;
``image``: the paper's). Rotated scenes are unlike any other: views are mirrored and recoloured, and
features of a view are turned back, so that the regions of its image are its regions.

Rows and pixels that the teacher gets wrong are ranked by the number of wrong answers above the
right one; all right ones are kept and ``keep`` of the wrong ones, the least wrong first. Public
code cuts among equal ranks as its sort leaves them. Here they share what is left: the mean over all
orders, and the same for a doubled batch. An answer is wrong only if another is truly above.

The teacher's head learns in the first ``head_steps`` steps, on features that are computed anyway,
and is frozen after them. Until then the student learns by ``kd`` and ``views``, and its own head by
``similarity``.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from segkd.methods.base import BuildContext, Context, Conversion, Needs, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.node_sampler import NodeMethod, TapNodeKeys
from segkd.methods.shared.views import VIEW, ViewKeys, aligned, of_images, with_views
from segkd.ops.error_levels import error_levels, kept_shares
from segkd.ops.nodes import raised, unit_rows
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import mean_softmax_kl
from segkd.structures import Batch, Outputs, Term


def sskd_loss(
    student: Tensor, teacher: Tensor, *, keep: float = 0.75, temperature: float = 0.5
) -> Tensor:
    """Mean over kept rows of T² · KL(teacher's similarities ‖ student's).

    Args:
        student: embeddings (1 + V, M, D_s) of M nodes in the images, then in each of V views.
        teacher: (1 + V, M, D_t), the same nodes; detached.
        keep: share of the rows that are kept among those with a wrong answer of the teacher.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero without nodes.

    Raises:
        ValueError: shapes do not match.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; expected "
            "(1 + V, M, D_s) and (1 + V, M, D_t): nodes in the images, then in each view"
        )
    own, target = similarities(student), similarities(teacher.detach())
    share = kept_shares(error_levels(target), keep, levels=max(1, target.shape[1])).to(own.dtype)
    return mean_softmax_kl(own, target.to(own.dtype), share, temperature=temperature)


def similarities(nodes: Tensor) -> Tensor:
    """Cosines (V·M, M) between embeddings of views and of images, (1 + V, M, D)."""
    rows = raised(nodes)
    with torch.autocast(nodes.device.type, enabled=False):
        return unit_rows(rows[1:].flatten(0, 1)) @ unit_rows(rows[0]).T


class SSKDConfig(TapNodeKeys, ScaleKeys, ViewKeys):
    """Keys of the method ``sskd``."""

    weight: Weight = Field(0.1, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(4.0, description="T of `kd` and `views`")
    similarity_temperature: PositiveFloat = Field(0.5, description="T of `similarity`")
    keep: float = Field(0.75, ge=0, le=1, description="share of wrong rows in `similarity`")
    keep_views: float = Field(1.0, ge=0, le=1, description="share of wrong pixels in `views`")
    dim: PositiveInt = Field(128, description="width of both layers of both heads")
    head_steps: NonNegativeInt = Field(
        300,
        description="first steps of the run, in which the teacher's head is trained; 0: it has "
        "learned in the run of `init_from`",
    )


class SSKD(NodeMethod[SSKDConfig]):
    """Terms ``kd`` and ``views``, means over pixels, and ``similarity``, equal everywhere."""

    name = "sskd"
    kind = "relation"
    paper = "Xu et al.: Knowledge Distillation Meets Self-Supervision, arXiv 2006.07114"
    year = 2020
    equation = (
        "T² · mean KL(p_t ‖ p_s) on images and on views; T² · mean_i KL(softmax(A_t/T) ‖ "
        "softmax(A_s/T))_i, A_ij = cos(view i, image j) of nodes"
    )
    cost = "both networks see a view of each image as well; a mean over features, M·M·dim"
    inner_steps = 1
    teaches_meanwhile = True  # by terms that need no head of the teacher
    default_weights: Mapping[str, float] = {"kd": 0.9, "views": 2.7, "similarity": 10.0}
    exempt: ClassVar = {
        "no_waiting": NodeMethod.exempt["no_waiting"],
        "swapped_axes": "views are mirrored from left to right",
        "more_padding": "the padding of a view is mirrored, too",
    }
    conversions: ClassVar = {
        "SSKD": Conversion(1, note="three views, T 4, 4 and 0.5, dim as features; task weight 0.1"),
    }

    @property
    def needs_labels(self) -> bool:
        return self.config.needs_labels or self.config.keep_views < 1

    @property
    def needs(self) -> Needs:
        student, teacher = (
            tuple(dict.fromkeys([tap, "logits"])) for tap in (self.config.tap, self.teacher_tap)
        )
        return Needs(student, teacher, labels=self.needs_labels, rewrites_batch=True)

    def build(self, spec: BuildContext) -> None:
        mine, theirs = spec.student[self.config.tap], spec.teacher[self.teacher_tap]
        self.student_head, self.teacher_head = (
            _head(tap.channels, self.config.dim) for tap in (mine, theirs)
        )

    def prepare(self, batch: Batch, context: Context) -> Batch:
        """Each image followed by its views."""
        return with_views(batch, self.config, context)

    def preparation_steps(self, total_steps: int) -> int:
        return self.config.head_steps

    def inner_parameters(self) -> list[nn.Parameter]:
        return list(self.teacher_head.parameters())

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        own, target = self._embedded(student, teacher, context, learns=not context.preparing)
        value = sskd_loss(
            own, target, keep=self.config.keep, temperature=self.config.similarity_temperature
        )
        return {**self._pixels(student, teacher, context), "similarity": Term(value)}

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        if VIEW not in batch.extra:  # an entry of weight 0 prepares no batch
            nothing = torch.stack([p.sum() * 0 for p in self.inner_parameters()])
            return {"contrast": Term(nothing.sum())}
        _, target = self._embedded(student, teacher, context, learns=False)
        cosines = similarities(target)
        right = torch.arange(len(cosines), device=cosines.device) % max(1, cosines.shape[1])
        total = cross_entropy(cosines, right, reduction="sum")
        return {"contrast": Term(total / max(1, len(cosines)))}

    def _embedded(
        self, student: Outputs, teacher: Outputs, context: Context, *, learns: bool
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (1 + V, M, dim) of both; with a gradient to the student if it ``learns``."""
        maps, target = self.tapped(student, teacher)
        self.feature_scale.observe(target, context)
        views, images = self.config.views, of_images(context, self.config.views)
        maps = maps if learns else maps.detach()
        nodes = self.sampler(aligned(maps, views), aligned(target, views), images)
        own, other = (self._in_units(rows) for rows in (nodes.student, nodes.teacher))
        with torch.autocast(maps.device.type, enabled=False):
            return self.student_head(own), self.teacher_head(other)

    def _in_units(self, nodes: tuple[Tensor, ...]) -> Tensor:
        """(1 + V, M, C), divided by the scale of the teacher's features."""
        rows = self.feature_scale.same(torch.stack(nodes))
        assert rows is not None
        return rows

    def _pixels(self, student: Outputs, teacher: Outputs, context: Context) -> dict[str, Term]:
        """Soft targets on images and on views, whose pixels are turned back."""
        config, size = self.config, common_size(student.logits, teacher.logits)
        images = of_images(context, config.views)
        maps = match_sizes(student.logits, teacher.logits.detach())
        own, target = (torch.stack(aligned(logits, config.views)) for logits in maps)
        mask = images.mask_at(*size)
        weights = mask.expand(len(own), *mask.shape).double()
        if config.keep_views < 1:
            weights = weights * self._kept(target, mask, images)
        terms, degrees = {}, config.temperature
        for name, part in (("kd", slice(0, 1)), ("views", slice(1, None))):
            mine, theirs, rows = (x[part].flatten(0, 1) for x in (own, target, weights))
            value = mean_softmax_kl(mine, theirs, rows, temperature=degrees)
            terms[name] = Term(value, rows.sum())
        return terms

    def _kept(self, target: Tensor, mask: Tensor, images: Context) -> Tensor:
        """Shares (1 + V, B, h, w): ``keep_views`` of labelled pixels of views in a wrong class."""
        labels = images.labels_at(*mask.shape[1:])
        known = mask & (labels != images.batch.ignore_index)
        classes = target.shape[2]
        right = target.gather(
            2, labels.where(known, 0).expand(len(target), *mask.shape)[:, :, None]
        )
        errors = ((target > right).sum(2) * known)[1:]
        counted = mask.expand(errors.shape)
        shares = kept_shares(
            errors, self.config.keep_views, levels=classes, mask=counted, all_sum=images.all_sum
        )
        return torch.cat([torch.ones_like(shares[:1]), shares])


def _head(channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, dim), nn.ReLU(), nn.Linear(dim, dim))
