"""The training images of a run, divided among its processes and micro-steps."""

from segkd.config.schema import RunConfig
from segkd.data.loader import TrainLoader, train_loader
from segkd.engine.setup import Components
from segkd.engine.teacher_cache import views_of
from segkd.errors import ConfigError
from segkd.runtime import Runtime


def run_loader(
    config: RunConfig, parts: Components, runtime: Runtime, start: int, stop: int, workers: int
) -> TrainLoader:
    """The batches of this process for steps ``start`` to ``stop``.

    Raises:
        ConfigError: the images of a step cannot be divided.
    """
    world, accumulate = runtime.world, config.optim.accumulate
    shares = world * accumulate
    if config.data.batch_size % shares:
        raise ConfigError(
            f"data.batch_size: {config.data.batch_size} images per step cannot be divided among "
            f"{world} process(es) x {accumulate} micro-step(s). Use a multiple of {shares}"
        )
    return train_loader(
        parts.train_set,
        config=config.data.model_copy(update={"workers": workers}),
        batch_size=config.data.batch_size // shares,
        seed=config.seed,
        start=start,
        stop=stop,
        rank=runtime.rank,
        world=world,
        accumulate=accumulate,
        pin_memory=runtime.device.type == "cuda",
        stores=parts.teachers.stores(),
        caches={name: cache.source for name, cache in parts.teachers.caches.items()},
        views=views_of(config) if parts.teachers.caches else None,
    )
