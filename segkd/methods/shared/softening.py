"""What comes before the softmaxes of `kd` and `dkd`: two temperatures, and z-scores.

With a temperature T of the teacher's softmax and S of the student's,

    L = S² · KL(softmax(z_t / T) ‖ softmax(z_s / S)),   ∂L/∂z_s = S · (p_s − p_t).

The factor is S², not T² and not S·T: it makes up for the two divisions by S, of the student's
logits and of their gradient, and the teacher's temperature divides nothing but its own logits. So
S = T is the usual loss, and S = 1 has no factor, as transformed teacher matching is published:
Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching. ICLR 2024, arXiv
2402.11148.

Logits of another network may have another range, and a student cannot always reach the teacher's.
``standardize`` compares z-scores over the classes of a pixel instead: Sun, Ren, Li, Wang, Cao:
Logit Standardization in Knowledge Distillation. CVPR 2024, arXiv 2403.01427.
"""

from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import MethodConfig
from segkd.ops.known import LOW, class_mask, restricted
from segkd.ops.standardize import z_scores


class SofteningKeys(MethodConfig):
    """Keys of methods that compare softened classes."""

    temperature: PositiveFloat = Field(1.0, description="T of both softmaxes")
    student_temperature: PositiveFloat | None = Field(
        None,
        description="T of the student's softmax; null: `temperature`. 1 below a larger "
        "`temperature` is TTM: the teacher alone is softened. The loss has the factor T² of this "
        "one, since only the student's softmax divides the gradient",
    )
    standardize: bool = Field(
        False,
        description="compare z-scores of the logits over the classes of a pixel (LSKD): their "
        "range does not matter; needs three classes",
    )


def softened(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    student_temperature: float | None = None,
    standardize: bool = False,
    unknown: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor, float]:
    """Logits whose softmaxes at one common temperature are the two that are compared.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h, w).
        temperature: T of the teacher's softmax.
        student_temperature: T of the student's; None: the same.
        standardize: take z-scores first.
        unknown: ids of classes that are excluded on both sides.

    Returns:
        Both, and the common temperature, which is the student's.
    """
    if standardize:
        student, teacher = z_scores(student, unknown), z_scores(teacher, unknown)
    else:
        student, teacher = restricted(student, unknown), restricted(teacher, unknown)
    common = student_temperature or temperature
    if common != temperature:
        teacher = teacher * (common / temperature)
    if unknown:  # their share vanishes at any temperature
        out, low = class_mask(unknown, student.shape[1], student.device), LOW * max(1.0, common / 2)
        student, teacher = student.masked_fill(out, low), teacher.masked_fill(out, low)
    return student, teacher, common


def require_three(method: str, classes: int, *, known: bool = False) -> None:
    """Refuses ``standardize`` where z-scores cannot teach.

    Args:
        method: name of the method, for the message.
        classes: number of them.
        known: they are those that the teacher knows.

    Raises:
        ConfigError: there are fewer than three.
    """
    if classes < 3:
        where = f"the teacher knows {classes} of the classes" if known else f"{classes} classes"
        raise ConfigError(
            f"{method}: standardize needs three classes, and got {where}: z-scores of two logits "
            "are 0.71 and -0.71 whatever they are, so nothing is learned. Remove `standardize` "
            "from this entry"
        )
