"""FT: the student's features are translated to factors, into which the teacher's are paraphrased.

Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS
2018, arXiv 1802.04977.

    beforehand  mean over valid positions and channels of (decode(encode(F_t)) − F_t)²
    then        L = mean over images of ‖ q_s − q_t ‖₁ / √n,   q = Q / ‖Q‖₂ over an image's n
                elements,   Q_t = encode(F_t),   Q_s = translate(F_s)

Taps: ``head`` by default. Encoder, decoder and translator are three 3x3 convolutions each, every
one with a LeakyReLU of slope 0.1; factors have ``rate`` times the teacher's channels. The
paraphraser (encoder, decoder) learns in the first steps of the run, from the teacher alone, while
the student learns labels; then it is frozen, and factor transfer begins. With the recipe
``streets/ft`` it learns in a run of its own, as in the paper.
Public code reconstructs with an L1 distance, and averages ‖q_s − q_t‖₁ over elements, so that its
weight has to grow with √n: two unit vectors of n elements differ by about n^-½ in each.
Its transposed convolutions have stride 1: convolutions with a turned kernel.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.masked import count_images, image_mean, position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term

_SHARE = 0.1  # of all steps, in which the paraphraser learns
_SLOPE = 0.1  # of LeakyReLU
_EPS = 1e-6  # added to a mean square of about 1


def ft_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean over images of the L1 distance of two factors of norm 1, by the root of their size.

    Args:
        student: the student's factors (B, C, h, w).
        teacher: the teacher's factors (B, C, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.

    Returns:
        A scalar between 0 and 2, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    require_equal_shapes(student, teacher)
    mask = position_mask(student, mask)
    elements = mask.flatten(1).sum(1).clamp(min=1) * student.shape[1]
    # Q·√n / ‖Q‖₂ is Q divided by its root mean square: no element depends on n.
    units = (values * _inverse_root(values, elements) for values in (student, teacher))
    first, second = units
    return image_mean((first - second).abs().sum(dim=(1, 2, 3)) / elements, mask)


def _inverse_root(values: Tensor, elements: Tensor) -> Tensor:
    """1 / root mean square of each image's valid elements: (B, 1, 1, 1)."""
    return (values.square().sum(dim=(1, 2, 3)) / elements + _EPS).rsqrt().view(-1, 1, 1, 1)


class Layers(nn.Module):
    """3x3 convolutions, each with a LeakyReLU; invalid positions are 0 before each of them.

    Args:
        channels: of the input, and of the output of each convolution.
    """

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(*pair, kernel_size=3, padding=1) for pair in pairwise(channels)
        )
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            nn.init.kaiming_normal_(convolution.weight, a=_SLOPE)
            nn.init.zeros_(convolution.bias)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h, w), 0 at invalid positions.

        Args:
            maps: (B, C, h, w).
            mask: (B, h, w) bool, True where positions are valid.
        """
        hidden = ~mask.unsqueeze(1)
        for convolution in self.convolutions:
            maps = nn.functional.leaky_relu(convolution(maps.masked_fill(hidden, 0)), _SLOPE)
        return maps.masked_fill(hidden, 0)


class FTConfig(TapKeys, ScaleKeys):
    """Keys of the method ``ft``."""

    weight: Weight = Field(2.5, description="factor of all terms; see docs/weights.md")
    rate: PositiveFloat = Field(0.5, description="channels of factors over those of the teacher")
    paraphraser_steps: NonNegativeInt | None = Field(
        None,
        description="first steps of the run, in which the paraphraser learns, and nothing else of "
        "the method; default: a tenth of the run; 0: it has learned in the run of `init_from`",
    )
    paraphraser_lr: PositiveFloat = Field(1e-3, description="learning rate of its Adam")


class FT(TapMethod[FTConfig]):
    """Term ``ft``, a mean over images; the paraphraser is trained beforehand by ``inner_loss``."""

    name = "ft"
    kind = "feature"
    paper_weight = 11.05
    scale_free = False
    paper = "Kim et al.: Paraphrasing Complex Network: Factor Transfer, arXiv 1802.04977"
    year = 2018
    equation = (
        "mean_images ‖q_s − q_t‖₁ / √n, q = Q / ‖Q‖₂, Q_t = encode(F_t), Q_s = translate(F_s)"
    )
    cost = "three 3x3 convolutions of both: 18·N·Σ C_in·C_out operations; beforehand three more"
    inner_steps = 1
    conversions: ClassVar = {
        "FT": Conversion(
            500 / 0.5**0.5,
            {"C_t": -0.5, "h": -0.5, "w": -0.5},
            "500 at rate 0.5: n = rate·C_t·h·w; 11.05 at its 64x8x8",
        ),
        "RepDistiller": Conversion(
            200 / 0.5**0.5, {"C_t": -0.5, "h": -0.5, "w": -0.5}, "200 at rate 0.5"
        ),
    }

    def build(self, spec: BuildContext) -> None:
        mine = spec.student[self.config.tap].channels
        theirs = spec.teacher[self.teacher_tap].channels
        factors = max(1, round(self.config.rate * theirs))
        self.translator = Layers(mine, mine, factors, factors)
        self.encoder = Layers(theirs, theirs, factors, factors)
        self.decoder = Layers(factors, factors, theirs, theirs)

    def preparation_steps(self, total_steps: int) -> int:
        steps = self.config.paraphraser_steps
        return round(_SHARE * total_steps) if steps is None else steps

    def inner_parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.config.paraphraser_lr)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target, mask = self._inputs(student, teacher, context)
        with torch.no_grad():
            target = self.encoder(target, mask)
        value = ft_loss(self.translator(features, mask), target, mask=mask)
        return {"ft": Term(value, count_images(mask))}

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        _, target, mask = self._inputs(student, teacher, context)
        found = self.decoder(self.encoder(target, mask), mask)
        value = masked_mse(found.to(target.dtype), target, mask)
        return {"reconstruction": Term(value, mask.sum(dtype=torch.float64))}

    def _inputs(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both features (B, C_s, h, w) and (B, C_t, h, w), and the mask (B, h, w)."""
        features, target = self.scaled(student, teacher, context)
        mask = context.mask_at(*common_size(features, target))
        return *match_sizes(features, target, mask=mask), mask
