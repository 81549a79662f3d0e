"""Exits at stages that are finer than the network's end, beside pixels without a label."""

import pytest
import torch

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.byot import BYOT
from segkd.methods.msd import MSD
from segkd.methods.one import ONE
from segkd.methods.shared.exits import Exit
from segkd.structures import Batch, Outputs, Term

METHODS = {
    "byot": lambda: BYOT(BYOT.Config(taps=["stage2", "stage3"])),
    "msd": lambda: MSD(MSD.Config(taps=["stage2", "stage3"])),
    "msd_ensemble": lambda: MSD(MSD.Config(taps=["stage2", "stage3"], teaching="ensemble")),
    "one": lambda: ONE(ONE.Config(tap="stage2", width=8)),
}


def task_loss(outputs, batch):
    return {"mean": Term(outputs.logits.sum() * 0, torch.tensor(1.0, dtype=torch.float64))}


def loud(exit_, features, mask, *, plain=Exit.forward):
    """Outputs at positions that are not valid are far from all others."""
    maps, logits = plain(exit_, features, mask)
    ramp = torch.linspace(-40, 40, logits.shape[1]).view(1, -1, 1, 1).expand_as(logits)
    hidden = ~mask.unsqueeze(1)
    return maps.masked_fill(hidden, 30.0), torch.where(hidden, ramp, logits)


@pytest.mark.parametrize("name", METHODS)
def test_what_exits_say_without_a_label_is_not_compared(name, monkeypatch):
    terms = []
    for forward in (Exit.forward, loud):
        torch.manual_seed(0)
        method = METHODS[name]()
        infos = {"stage2": TapInfo(3, 2), "stage3": TapInfo(5, 4), "head": TapInfo(6, 8)}
        method.build(BuildContext(infos | {"logits": TapInfo(4, 8)}, {}, 4))
        student = Outputs(
            torch.randn(2, 4, 4, 4),
            {
                "stage2": torch.randn(2, 3, 16, 16),
                "stage3": torch.randn(2, 5, 8, 8),
                "head": torch.randn(2, 6, 4, 4),
            },
        )
        labels = torch.randint(4, (2, 32, 32))
        labels[:, 20:] = 255  # through the middle of the end's third row of cells
        inside = torch.ones(2, 32, 32) > 0
        batch = Batch(torch.zeros(2, 3, 32, 32), labels, inside, torch.arange(2))
        monkeypatch.setattr(Exit, "forward", forward)
        found = method.loss(student, None, batch, Context(batch, task_loss=task_loss))
        terms.append({key: term.value for key, term in found.items()})
    assert any(value > 0 for value in terms[0].values())
    torch.testing.assert_close(terms[0], terms[1])
