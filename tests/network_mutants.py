"""A small right network, and mutants of it that are wrong in one respect each."""

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from segkd.models.network import Network


class Right(Network):
    """Two stages and a classifier, in small steps to override."""

    name = "right"

    def __init__(self, config, num_classes, *, width=6):
        super().__init__(config, num_classes)
        self.divisor = 4
        self.encoder = nn.ModuleDict({"one": _block(3, width), "two": _block(width, 2 * width)})
        self.classifier = nn.Conv2d(2 * width, num_classes, 1)

    def tap_names(self):
        return ["stage2", "stage3", "head", "logits"]

    def compute(self, images, record):
        stages = self.stages(images)
        for name, value in zip(("stage2", "stage3"), stages, strict=True):
            self.offer(record, name, value)
        record("head", stages[-1])
        return self.classify(stages[-1])

    def stages(self, images):
        first = self.encoder["one"](images)
        return [first, self.encoder["two"](first)]

    def offer(self, record, name, value):
        record(name, value)

    def classify(self, features):
        return self.classifier(features)


def _block(before, channels):
    layers = nn.Conv2d(before, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels)
    return nn.Sequential(*layers, nn.ReLU())


class GroupOfItsOwn(Right):
    def group_of(self, parameter_name):
        return "head"


class NoLogitsTap(Right):
    def tap_names(self):
        return ["stage2", "stage3", "head"]


class Probabilities(Right):
    def classify(self, features):
        return super().classify(features).softmax(1)


class LogProbabilities(Right):
    def classify(self, features):
        return super().classify(features).log_softmax(1)


class OneClassMore(Right):
    def __init__(self, config, num_classes, **options):
        super().__init__(config, num_classes, **options)
        self.classifier = nn.Conv2d(12, num_classes + 1, 1)


class FixedSizeOfLogits(Right):
    def classify(self, features):
        return F.interpolate(super().classify(features), (16, 24))


class ForgetsAnOddRow(Right):
    """Says that it takes multiples of 4, but loses a row of those that are none of 8."""

    def stages(self, images):
        height = images.shape[2] // 8 * 8
        return super().stages(images[:, :, : height // 2])


class TakesAnySize(Right):
    def _check(self, images):
        pass


class TapThatDoesNotExist(Right):
    def tap_names(self):
        return ["stage2", "stage3", "stage4", "head", "logits"]


class TapThatIsAnother(Right):
    """Offers something else where nobody listens."""

    asked = 0

    def offer(self, record, name, value):
        self.asked += 1
        record(name, value * self.asked)


class DetachedTap(Right):
    def offer(self, record, name, value):
        record(name, value.detach() if name == "stage2" else value)


class BlueFirst(Right):
    def stages(self, images):
        return super().stages(images.flip(1))


class BlueFirstWhenNormalised(Right):
    def normalized(self, images):
        return super().normalized(images.flip(1))


class BytesFromZeroToOne(Right):
    def normalized(self, images):
        return super().normalized(images if images.is_floating_point() else images / 255)


class WritesIntoTheImages(Right):
    def normalized(self, images):
        found = super().normalized(images)
        images.zero_()
        return found


class NineteenClasses(Right):
    def __init__(self, config, num_classes, **options):
        super().__init__(config, num_classes, **options)
        self.classifier = nn.Conv2d(12, 5, 1)


class AuxiliaryForEver(Right):
    def forward(self, images, taps=()):
        outputs = super().forward(images, taps)
        return replace(outputs, aux={"aux": outputs.logits} if self.aux_heads else {})


class StatisticsOfTheBatch(Right):
    def stages(self, images):
        return super().stages(images - images.mean((0, 2, 3), keepdim=True))


class DropsInEvaluation(Right):
    def classify(self, features):
        return super().classify(F.dropout(features, 0.2))


class CountsInEvaluation(Right):
    def __init__(self, config, num_classes, **options):
        super().__init__(config, num_classes, **options)
        self.register_buffer("seen", torch.zeros(()))

    def stages(self, images):
        self.seen += len(images)
        return super().stages(images)


class LeavesTraining(Right):
    def stages(self, images):
        self.encoder.eval()
        return super().stages(images)


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class LearnsTheOpposite(Right):
    def classify(self, features):
        return _Backwards.apply(super().classify(features))


class OtherNetworkEachTime(Right):
    built: ClassVar[int] = 0

    def __init__(self, config, num_classes):
        type(self).built += 1
        super().__init__(config, num_classes, width=4 + self.built)


class StateBesideTheState(Right):
    """Draws what is in no buffer."""

    def __init__(self, config, num_classes):
        super().__init__(config, num_classes)
        self.gain = torch.rand(())

    def classify(self, features):
        return super().classify(features) * self.gain


class HoldsALambda(Right):
    def __init__(self, config, num_classes):
        super().__init__(config, num_classes)
        self.last = lambda x: x


class LayerOfTheClass(Right):
    shared: ClassVar[list] = []

    def __init__(self, config, num_classes):
        super().__init__(config, num_classes)
        if not self.shared:
            self.shared.append(nn.BatchNorm2d(12))

    def classify(self, features):
        if self.training:
            self.shared[0].train()(features.detach())
        return super().classify(self.shared[0].eval()(features))


class OverflowsInHalf(Right):
    def classify(self, features):
        found = super().classify(features)
        return found / 0 if found.dtype is torch.bfloat16 else found


class ReadsMemory(Right):
    """Takes numbers in the order in which they lie in memory."""

    def stages(self, images):
        first, second = super().stages(images)
        channels, height, width = second.shape[1:]
        strides = (channels * height * width, height * width, width, 1)
        return [first, second.as_strided(second.shape, strides)]
