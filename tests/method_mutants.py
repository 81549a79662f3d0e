"""A small right method, and mutants of it that are wrong in one respect each."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from segkd.methods.base import Method, MethodConfig, Needs
from segkd.modules.adapter import channel_adapter
from segkd.ops.resize import match_sizes
from segkd.structures import Outputs, Term

BOTH = Needs(student=("logits",), teacher=("logits",), accepts_log_prob=True)


class Plain(Method):
    """The squared distance of class probabilities at a temperature, in small steps to override."""

    name, kind = "plain", "response"
    needs = BOTH

    class Config(MethodConfig):
        temperature: float = Field(2.0, description="T")

    def loss(self, student, teacher, batch, context):
        own, target = self.pair(student, teacher)
        mask = self.mask(context, batch, own)
        value = self.mean(self.distance(self.raised(own), self.raised(target)), mask)
        return {"plain": Term(self.scaled(value, context), mask.sum(dtype=torch.float64))}

    def pair(self, student, teacher):
        return match_sizes(student.logits, teacher.logits.detach())

    def mask(self, context, batch, own):
        return context.mask_at(*own.shape[-2:])

    def raised(self, logits):
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def softened(self, logits):
        return (logits / self.config.temperature).softmax(1)

    def distance(self, own, target):
        factor = self.config.temperature**2
        return factor * (self.softened(own) - self.softened(target)).square().sum(1)

    def mean(self, values, mask):
        return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)

    def scaled(self, value, context):
        return value


class Features(Method):
    """The same for features: their mean squared distance in units of the teacher's."""

    name, kind = "features", "feature"
    needs = Needs(student=("head",), teacher=("head",))

    def build(self, spec):
        self.adapter = channel_adapter(spec.student["head"].channels, spec.teacher["head"].channels)

    def loss(self, student, teacher, batch, context):
        own, target = match_sizes(
            self.adapter(student.features["head"]), teacher.features["head"].detach()
        )
        mask = context.mask_at(*own.shape[-2:])
        hidden = ~mask.unsqueeze(1)
        own, target = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (own, target))
        own, target = (x.masked_fill(hidden, 0) for x in (own, target))
        unit = context.all_sum(target.square().sum()) / context.all_sum(mask.sum()).clamp(min=1)
        distance = (own - target).square().sum((1, 2, 3)) / (unit / target.shape[1] + 1e-9)
        value = distance.sum() / (mask.sum().clamp(min=1) * target.shape[1])
        return {"features": Term(value, mask.sum(dtype=torch.float64))}


# -- HOUSE's seven ---------------------------------------------------------------------------------


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.linspace(0.5, 1.5, gradient.shape[-1], dtype=gradient.dtype).to(
            gradient.device, non_blocking=True
        )


class WrongGradient(Plain):
    def raised(self, logits):
        return _HalfGradient.apply(super().raised(logits))


class FlippedSign(Plain):
    def scaled(self, value, context):
        return -value


class FlippedSignAboveZero(Plain):
    def distance(self, own, target):
        return self.config.temperature**2 * 2 - super().distance(own, target)


class OverwritesTheTeacher(Plain):
    def pair(self, student, teacher):
        teacher.logits.detach().sub_(1)  # a constant: no softmax sees it
        return super().pair(student, teacher)


class ReplacesTheTeachersLogits(Plain):
    def pair(self, student, teacher):
        teacher.logits = teacher.logits.log_softmax(1)
        return super().pair(student, teacher)


class OverwritesTheBatch(Plain):
    def mask(self, context, batch, own):
        mask = super().mask(context, batch, own)
        batch.images.clamp_(min=1)
        return mask


class WeighsItself(Plain):
    def scaled(self, value, context):
        return value * self.config.weight


class WeighsItsTerms(Plain):
    def scaled(self, value, context):
        return value * self.config.weights.get("plain", 1.0)


class SchedulesItself(Plain):
    def scaled(self, value, context):
        return value * (1 - context.step / context.total_steps)


class WarmsItselfUp(Plain):
    def scaled(self, value, context):
        return value * min(1, (context.step + 1) / max(1, self.config.warmup))


class IgnoresTheMaskKey(Plain):
    def mask(self, context, batch, own):
        context.mask = "valid"
        return super().mask(context, batch, own)


class TakesVoidForValid(Plain):
    def mask(self, context, batch, own):
        context.mask = "not_padding"
        return super().mask(context, batch, own)


class ReadsANumber(Plain):
    def scaled(self, value, context):
        return value if value.item() >= 0 else -value


class CopiesToTheCPU(Plain):
    def scaled(self, value, context):
        self.last = value.detach().cpu()
        return value


class Branches(Plain):
    def mean(self, values, mask):
        return super().mean(values, mask) if mask.any() else 0 * values.sum()


class IndexesByMask(Plain):
    def mean(self, values, mask):
        return values[mask].sum() / mask.sum().clamp(min=1)


class MakesATensorOfANumber(Plain):
    def scaled(self, value, context):
        return value * torch.tensor(1.0, device=value.device)


class Prints(Plain):
    def scaled(self, value, context):
        self.text = f"{value:.3f}"
        return value


# -- what HOUSE leaves to own tests ----------------------------------------------------------------


class WrongAxis(Plain):
    def softened(self, logits):
        return (logits / self.config.temperature).softmax(2)


class WrongReshape(Plain):
    def distance(self, own, target):
        own, target = (x.reshape(x.shape[0], -1, x.shape[1]).mT for x in (own, target))
        return super().distance(own, target).view(len(own), 8, 12)


class NoDetach(Plain):
    def pair(self, student, teacher):
        return match_sizes(student.logits, teacher.logits)


class NoMask(Plain):
    def mask(self, context, batch, own):
        return torch.ones_like(own[:, 0], dtype=torch.bool)


class SumOverImages(Plain):
    def mean(self, values, mask):
        return super().mean(values, mask) * len(values)


class SumOverPositions(Plain):
    def mean(self, values, mask):
        return values.masked_fill(~mask, 0).flatten(1).sum(1).mean()


class MeanOverAllPixels(Plain):
    def mean(self, values, mask):
        return values.masked_fill(~mask, 0).mean()


class SumOverChannels(Features):
    def loss(self, student, teacher, batch, context):
        (term,) = super().loss(student, teacher, batch, context).values()
        return {"features": Term(term.value * self.channels, term.count)}

    def build(self, spec):
        super().build(spec)
        self.channels = spec.teacher["head"].channels


class NoSquaredTemperature(Plain):
    def distance(self, own, target):
        return super().distance(own, target) / self.config.temperature**2


class HalfPrecision(Plain):
    def pair(self, student, teacher):
        return [x.to(student.logits.dtype) for x in super().pair(student, teacher)]

    def raised(self, logits):
        return logits

    def scaled(self, value, context):
        return value.to(torch.promote_types(value.dtype, torch.float32))


class NoUnit(Features):
    def loss(self, student, teacher, batch, context):
        (term,) = super().loss(student, teacher, batch, context).values()
        unit = (
            teacher.features["head"]
            .detach()
            .square()
            .mean(1)
            .masked_fill(~context.mask_at(*teacher.features["head"].shape[-2:]), 0)
        )
        unit = context.all_sum(unit.sum()) / 100
        return {"features": Term(term.value * unit, term.count)}


# -- banks -----------------------------------------------------------------------------------------


class Bank(Method):
    """Pixels are compared with the mean of their class that a teacher had in earlier images."""

    name, kind = "bank", "relation"
    needs = Needs(student=("logits",), teacher=("logits",), labels=True)
    exempt: ClassVar = {
        "mask_not_padding": "without a label there is no class",
        "perfect_student": "its target is the mean of a class",
    }

    def build(self, spec):
        self.register_buffer("sums", torch.zeros(spec.num_classes, spec.num_classes))
        self.register_buffer("numbers", torch.zeros(spec.num_classes, dtype=torch.float64))

    def loss(self, student, teacher, batch, context):
        logits = student.logits.to(torch.promote_types(student.logits.dtype, torch.float32))
        members = self.members(logits, batch, context)  # (B, h, w, K)
        mean = self.bank()[0] / self.bank()[1].clamp(min=1).unsqueeze(1)
        known = members * (self.bank()[1] > 0)
        with torch.autocast(logits.device.type, enabled=False):
            target = (members.to(logits.dtype) @ mean.to(logits.dtype)).movedim(-1, 1)
        mask = known.any(-1)
        distance = (logits.softmax(1) - target).square().sum(1).masked_fill(~mask, 0)
        value = distance.sum() / mask.sum().clamp(min=1)
        return {"bank": Term(value, mask.sum(dtype=torch.float64))}

    def after_step(self, student, teacher, batch, context):
        logits = teacher.logits.double()
        members = self.members(logits, batch, context)
        probabilities = logits.softmax(1).movedim(1, -1).masked_fill(~members.any(-1, True), 0)
        sums = self.shared(torch.einsum("bhwk,bhwc->kc", members.double(), probabilities), context)
        self.bank()[0].add_(sums)
        self.bank()[1].add_(self.shared(members.sum((0, 1, 2), dtype=torch.float64), context))

    def bank(self):
        return self.sums, self.numbers

    def shared(self, sums, context):
        return context.all_sum(sums)

    def members(self, logits, batch, context):
        size = logits.shape[-2:]
        labels = context.labels_at(*size)
        one_hot = labels.unsqueeze(-1) == torch.arange(logits.shape[1], device=labels.device)
        return one_hot & context.mask_at(*size).unsqueeze(-1)


class ShiftedBank(Bank):
    def after_step(self, student, teacher, batch, context):
        before = [values.clone() for values in self.bank()]
        super().after_step(student, teacher, batch, context)
        for values, old in zip(self.bank(), before, strict=True):
            values.copy_(old + (values - old).roll(1, 0))


class LocalBank(Bank):
    def shared(self, sums, context):
        return sums


class BankInAnAttribute(Bank):
    def build(self, spec):
        k = spec.num_classes
        self.kept = torch.zeros(k, k), torch.zeros(k, dtype=torch.float64)

    def bank(self):
        return self.kept


class BankOfTheClass(Bank):
    kept: ClassVar[Any] = None

    def bank(self):
        if type(self).kept is None:
            type(self).kept = torch.zeros(5, 5), torch.zeros(5, dtype=torch.float64)
        return type(self).kept


# -- further ---------------------------------------------------------------------------------------


class SilentKey(Plain):
    class Config(Plain.Config):
        alpha: float = 1.0


class TakesAnyKey(Plain):
    class Config(Plain.Config):
        model_config: ClassVar = {"extra": "ignore", "frozen": True}


class NoName(Plain):
    name = ""


class ReturnsATensor(Plain):
    def loss(self, *inputs):
        return super().loss(*inputs)["plain"].value


class CountOfAnInteger(Plain):
    def loss(self, *inputs):
        (term,) = super().loss(*inputs).values()
        return {"plain": Term(term.value, term.count.long())}


class ForgetsATap(Features):
    needs = Needs(student=("head", "stage4"), teacher=("head",))


class IdleLayer(Features):
    def build(self, spec):
        super().build(spec)
        self.idle = nn.Conv2d(2, 2, 1)


class NoInnerSteps(Plain):
    def build(self, spec):
        self.critic = nn.Conv2d(spec.num_classes, 1, 1)

    def inner_parameters(self):
        return list(self.critic.parameters())


class MultipliesByTheMask(Plain):
    def mean(self, values, mask):
        return (values * mask).sum() / mask.sum().clamp(min=1)


class NoGuardForNothing(Plain):
    def mean(self, values, mask):
        return values.masked_fill(~mask, 0).sum() / mask.sum()


class DropsTheGraphOfNothing(Plain):
    def scaled(self, value, context):
        return value if bool(value > 0) else torch.zeros(())


class LogOfAProbability(Plain):
    def distance(self, own, target):
        p_own, p_target = self.softened(own), self.softened(target)
        rows = (p_target * (p_target.log() - p_own.log())).sum(1)
        return self.config.temperature**2 * rows.clamp(min=0)


class RootAtZero(Plain):
    def distance(self, own, target):
        return super().distance(own, target).sqrt()


class DividesByTheSpread(Plain):
    """Standardises over the images of the batch: of one image there is no spread."""

    def distance(self, own, target):
        found = super().distance(own, target)
        means = found.detach().flatten(1).mean(1)
        return found / (means - means.mean()).square().mean().sqrt()


class DividesByTheClasses(Plain):
    """Divides by the number of classes in the labels, less one."""

    needs = Needs(student=("logits",), teacher=("logits",), labels=True, accepts_log_prob=True)

    def mask(self, context, batch, own):
        labels = context.labels_at(*own.shape[-2:])
        present = [(labels == k).any() for k in range(own.shape[1])]
        self.classes = torch.stack(present).sum()
        return super().mask(context, batch, own)

    def mean(self, values, mask):
        return super().mean(values, mask) * (self.classes - 1) / (self.classes - 1)


class MeanOfImageMeans(Plain):
    def mean(self, values, mask):
        sums = values.masked_fill(~mask, 0).flatten(1).sum(1)
        return (sums / mask.flatten(1).sum(1)).mean()


class ThreeClasses(Plain):
    def distance(self, own, target):
        return super().distance(own[:, :3], target[:, :3]) + own[:, 2] * 0


class FirstClassIsBackground(Plain):
    def distance(self, own, target):
        factor = self.config.temperature**2
        return factor * (self.softened(own) - self.softened(target)).square()[:, 1:].sum(1)


class OneRowCounts(Plain):
    def distance(self, own, target):
        found = super().distance(own, target)
        return found * torch.linspace(0.5, 1.5, found.shape[-1]).to(found, non_blocking=True)


class NeedsLabelsUnsaid(Plain):
    def mask(self, context, batch, own):
        return super().mask(context, batch, own) & (context.labels_at(*own.shape[-2:]) < 255)


class GlobalRandomness(Plain):
    def mask(self, context, batch, own):
        mask = super().mask(context, batch, own)
        return mask & (torch.rand(own[0, 0].shape) > 0.1).to(own.device, non_blocking=True)


class HoldsALambda(Plain):
    def build(self, spec):
        self.square = lambda x: x.square()


class DeepStage(Features):
    needs = Needs(student=("stage5",), teacher=("stage5",))

    def build(self, spec):
        channels = (side["stage5"].channels for side in (spec.student, spec.teacher))
        self.adapter = channel_adapter(*channels)

    def loss(self, student, teacher, batch, context):
        sides = (Outputs(s.logits, {"head": s.features["stage5"]}) for s in (student, teacher))
        return super().loss(*sides, batch, context)


class ListensToAnyTeacher(Method):
    """Smooths labels; where there is a teacher it takes that, without having asked for one."""

    name, kind = "smooth", "self"
    needs = Needs(student=("logits",))

    def loss(self, student, teacher, batch, context):
        logits = student.logits.to(torch.promote_types(student.logits.dtype, torch.float32))
        mask = context.mask_at(*logits.shape[-2:])
        target = torch.full_like(logits, 1 / logits.shape[1])
        if teacher is not None:
            _, target = match_sizes(logits.detach(), teacher.logits.detach())
            target = target.softmax(1)
        rows = (logits.softmax(1) - target).square().sum(1).masked_fill(~mask, 0)
        value = rows.sum() / mask.sum().clamp(min=1)
        return {"smooth": Term(value, mask.sum(dtype=torch.float64))}


class LocalCollective(Plain):
    """Calls a collective only where something is valid."""

    def scaled(self, value, context):
        return value + 0 * context.all_sum(value.detach()) if bool(value > 0) else value


class LocalRelation(Plain):
    """A mean over the images of one process, said to be that of all."""

    def loss(self, student, teacher, batch, context):
        (term,) = super().loss(student, teacher, batch, context).values()
        return {"plain": Term(term.value)}


class DeadChannel(Features):
    """Standardises the channels by their own spread, which may be 0."""

    def loss(self, student, teacher, batch, context):
        (term,) = super().loss(student, teacher, batch, context).values()
        spread = teacher.features["head"].detach().float().std((0, 2, 3))
        return {"features": Term(term.value * (spread / spread).mean(), term.count)}


class CountsVoidPixels(Plain):
    """Takes its mean over valid pixels, but says that it is one over all that are no padding."""

    def loss(self, student, teacher, batch, context):
        (term,) = super().loss(student, teacher, batch, context).values()
        return {"plain": Term(term.value, batch.not_padding.sum(dtype=torch.float64))}


class Fades(Plain):
    """Right: adds half of each image to half of the next one of the global batch."""

    needs = replace(BOTH, rewrites_batch=True)

    def prepare(self, batch, context):
        images, inside = (self.gathered(x, context) for x in (batch.images, batch.not_padding))
        mixed = (images / 2 + images.roll(-1, 0) / 2).round().to(torch.uint8)
        own = self.own(len(batch), context)
        return batch.replace(images=mixed[own], not_padding=(inside & inside.roll(-1, 0))[own])

    def gathered(self, values, context):
        return context.gather(values)

    def own(self, length, context):
        return slice(context.rank * length, (context.rank + 1) * length)


class FadesInPlace(Fades):
    def prepare(self, batch, context):
        batch.images.copy_(super().prepare(batch, context).images)
        return batch


class FadesIntoItsOwnNext(Fades):
    def gathered(self, values, context):
        return values

    def own(self, length, context):
        return slice(length)
