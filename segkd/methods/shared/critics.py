"""What adversarial methods share: keys and optimiser of their critics."""

from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn
from typing_extensions import TypeVar

from segkd.methods.base import Method, MethodConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class CriticKeys(MethodConfig):
    """Keys of a ``CriticMethod``."""

    critic_steps: PositiveInt = Field(1, description="steps of the critic per student step")
    critic_lr: PositiveFloat = Field(4e-4, description="learning rate of the critic's Adam")
    critic_betas: tuple[Beta, Beta] = Field((0.9, 0.99), description="of the critic's Adam")


CriticT = TypeVar("CriticT", bound=CriticKeys, default=CriticKeys, covariant=True)


class CriticMethod(Method[CriticT]):
    """A method with a critic: ``inner_loss`` trains it in each step, and ``loss`` deceives it.

    ``loss`` evaluates it by ``modules.critic.frozen``, so that it learns nothing there.

    Attributes:
        critic: made in ``build``. A method with several overrides ``inner_parameters``.
    """

    kind = "adversarial"
    critic: nn.Module

    @property
    def inner_steps(self) -> int:
        """``critic_steps``."""
        return self.config.critic_steps

    def inner_parameters(self) -> list[nn.Parameter]:
        """The critic's parameters."""
        return list(self.critic.parameters())

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam with the keys of the critic."""
        return torch.optim.Adam(parameters, self.config.critic_lr, self.config.critic_betas)
