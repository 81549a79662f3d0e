"""Four small methods that use every hook of the contract: what KD and CWD alone would not test.

They are no methods to train with. ``registry.methods.add`` makes one known to an engine under
test.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from segkd.methods.base import Method, Needs
from segkd.modules.adapter import channel_adapter
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.structures import Outputs, Term

_SHORT = {"nan_at_invalid_positions": "multiplies by the mask, to be short"}


class ToyCritic(Method):
    """Own parameters with an own optimiser: a critic of single pixels."""

    name, kind = "toy_critic", "adversarial"
    exempt: ClassVar = {**_SHORT, "never_negative": "a critic's score has no zero"}
    inner_steps = 2
    needs = Needs(student=("logits",), teacher=("logits",))

    def build(self, spec):
        self.critic = nn.Sequential(
            nn.Conv2d(spec.num_classes, 8, 1), nn.Tanh(), nn.Conv2d(8, 1, 1)
        )

    def inner_parameters(self):
        return list(self.critic.parameters())

    def loss(self, student, teacher, batch, context):
        mask = context.mask_at(*student.logits.shape[-2:])
        return {"fool": _pixel_mean(-self._score(student.logits), mask)}

    def inner_loss(self, student, teacher, batch, context):
        fake, real = match_sizes(student.logits, teacher.logits)
        mask = context.mask_at(*fake.shape[-2:])
        hinge = F.relu(1 + self._score(fake)) + F.relu(1 - self._score(real))
        return {"critic": _pixel_mean(hinge, mask)}

    def _score(self, logits):
        weight = next(self.critic.parameters())
        return self.critic(logits.to(weight.dtype).softmax(1))[:, 0]


class ToyBank(Method):
    """A bank filled after the step from all processes, and a relation over the global batch."""

    name, kind = "toy_bank", "relation"
    exempt: ClassVar = {
        **_SHORT,
        "shallow_networks": "its taps are fixed",
        "no_waiting": "fills its ring in a loop",
    }
    needs = Needs(student=("stage4",), teacher=("stage5",))
    entries = 6

    def build(self, spec):
        channels = spec.teacher["stage5"].channels
        self.adapter = channel_adapter(
            spec.student["stage4"].channels, channels, always=True, gain=1.0
        )
        self.register_buffer("bank", torch.zeros(self.entries, channels))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def loss(self, student, teacher, batch, context):
        adapted = self.adapter(student.features["stage4"])
        with torch.autocast(adapted.device.type, enabled=False):
            return self._terms(adapted, teacher, context)

    def _terms(self, adapted, teacher, context):
        own, present = self._nodes(adapted, context)
        target, _ = self._nodes(teacher.features["stage5"].detach(), context)
        written = torch.arange(self.entries, device=own.device) < self.filled
        similar = [(nodes @ self.bank.to(nodes.dtype).T) for nodes in (own, target)]
        rows = present[:, None] & written.any()
        value = softmax_kl(*similar, rows, dim=1, keep=written[None])
        count = rows.sum(dtype=torch.float64)
        return {
            "bank": Term(value / count.clamp(min=1).to(value.dtype), count),
            "relation": Term(self._relation(own, target, present, context)),
        }

    def _relation(self, own, target, present, context):
        own, target, present = (context.gather(x) for x in (own, target, present))
        pairs = present[:, None] & present[None]
        squares = (own @ own.T - target @ target.T).square() * pairs
        return squares.sum() / pairs.sum().clamp(min=1)

    def after_step(self, student, teacher, batch, context):
        nodes, present = self._nodes(teacher.features["stage5"], context)
        nodes, present = context.gather(nodes), context.gather(present)
        for node in nodes[present]:
            self.bank[int(self.filled) % self.entries] = node
            self.filled += 1

    @staticmethod
    def _nodes(features, context):
        """One normalised mean over the valid positions per image, and whether it has any."""
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        mask = context.mask_at(*features.shape[-2:]).flatten(1)
        mean = torch.einsum("bcn,bn->bc", features.flatten(2), mask.to(features.dtype))
        mean = mean / mask.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(mean, dim=1, eps=1e-3), mask.any(1)


class ToySelf(Method):
    """No teacher: an own head learns the task and teaches nothing but its own tap."""

    name, kind = "toy_self", "self"
    exempt: ClassVar = {
        "scaled_features": "compares no features, and its own head sees them as they are"
    }
    needs = Needs(student=("stage4", "logits"), labels=True)

    def build(self, spec):
        self.head = nn.Conv2d(spec.student["stage4"].channels, spec.num_classes, 1)

    def loss(self, student, teacher, batch, context):
        logits = self.head(student.features["stage4"])
        mask = context.mask_at(*common_size(logits, student.logits))
        own, final = match_sizes(logits, student.logits)
        total = softmax_kl(final, own.detach(), mask[:, None], dim=1)
        total = total + softmax_kl(own, final.detach(), mask[:, None], dim=1)
        task = context.task_loss(Outputs(logits), batch)
        agree = Term(total / mask.sum().clamp(min=1), mask.sum(dtype=torch.float64))
        return {"agree": agree, **{f"head_{name}": term for name, term in task.items()}}


class ToyMix(Method):
    """Rewrites the batch: fades each image into its mirror image by a random share."""

    name, kind = "toy_mix", "data"
    exempt: ClassVar = _SHORT
    needs = Needs(student=("logits",), teacher=("logits",), rewrites_batch=True)

    def prepare(self, batch, context):
        share = torch.stack([torch.rand((), generator=g) for g in context.image_generators])
        share = share.to(batch.images.device, non_blocking=True)[:, None, None, None]
        mixed = batch.images * share + batch.images.flip(-1) * (1 - share)
        return batch.replace(
            images=mixed.round().to(torch.uint8),
            not_padding=batch.not_padding & batch.not_padding.flip(-1),
        )

    def loss(self, student, teacher, batch, context):
        own, target = match_sizes(student.logits, teacher.logits.detach())
        mask = context.mask_at(*own.shape[-2:])
        return {"distance": _pixel_mean((own.softmax(1) - target.softmax(1)).square().sum(1), mask)}


METHODS = (ToyCritic, ToyBank, ToySelf, ToyMix)


def _pixel_mean(values, mask):
    """Term of the mean of (B, h, w) values over the mask."""
    total = (values.to(torch.promote_types(values.dtype, torch.float32)) * mask).sum()
    return Term(total / mask.sum().clamp(min=1), mask.sum(dtype=torch.float64))
