import logging
import multiprocessing
import os
import random
import signal
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from segkd.data import packing
from segkd.data import workers as workers_module
from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.loader import eval_loader, train_loader
from segkd.errors import DataError, MachineError


class Toy(Dataset):
    """Noise images; the green channel is the index. ``broken`` ones cannot be read."""

    name = "toy"
    classes = ("a", "b", "c")
    palette = np.zeros((3, 3), np.uint8)

    def __init__(self, length: int = 5, broken: tuple[int, ...] = (), **keys) -> None:
        super().__init__(DataConfig(name="toy", **keys), "train")
        self.length, self.broken, self.reads = length, broken, 0

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"image{index} is broken.")
        self.reads += 1
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        image[..., 1] = index % 256
        return Sample(image, rng.integers(0, 3, (20, 30), dtype=np.uint8), f"image{index}")


def batches(toy: Toy, batch_size: int = 4, seed: int = 3, start: int = 0, stop: int = 4, **keys):
    loader = train_loader(
        toy, config=toy.config, batch_size=batch_size, seed=seed, start=start, stop=stop, **keys
    )
    return list(loader)


def equal(ours, others) -> bool:
    names = ("images", "labels", "not_padding", "index")
    return len(ours) == len(others) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(ours, others, strict=True)
        for name in names
    )


def test_a_batch_has_the_promised_form():
    (batch,) = batches(Toy(crop=(24, 16)), stop=1)
    assert batch.images.shape == (4, 3, 24, 16) and batch.images.dtype == torch.uint8
    assert batch.labels.shape == batch.not_padding.shape == (4, 24, 16)
    assert batch.labels.dtype == torch.uint8 and batch.index.dtype == torch.int64
    assert batch.to(torch.device("cpu")).labels.dtype == torch.int64
    assert batch.not_padding.dtype == torch.bool and batch.images.is_contiguous()
    assert not batch.not_padding.all()
    assert (batch.labels[~batch.not_padding] == 255).all() and (
        batch.labels[batch.not_padding] < 3
    ).all()
    for image, inside, index in zip(batch.images, batch.not_padding, batch.index, strict=True):
        assert (image[1][inside] == index).all()


def test_resuming_gives_the_tail():
    toy = Toy(crop=(16, 16), color_jitter=0.5)
    assert equal(batches(toy)[2:], batches(toy, start=2))
    assert equal(batches(toy, accumulate=2)[2:], batches(toy, start=1, accumulate=2))


def test_workers_change_nothing():
    alone = batches(Toy(crop=(16, 16), color_jitter=0.5, workers=0))
    assert equal(alone, batches(Toy(crop=(16, 16), color_jitter=0.5, workers=2)))


@pytest.mark.parametrize("crop", [(16, 16), (20, 30), (32, 40)])
def test_what_is_kept_in_memory_changes_nothing(crop):
    keys = {"crop": crop, "scale": (1.0, 1.0), "color_jitter": 0.5, "workers": 0}
    kept = Toy(**keys, cache=1)
    assert equal(batches(Toy(**keys)), batches(kept))
    assert kept.reads == 5


def test_no_more_is_kept_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(packing, "_lz4_or_none", lambda: None)
    toy = Toy(length=500, crop=(8, 8), workers=0, cache=1)
    batches(toy, batch_size=100, stop=10)
    room = 2**20 // (20 * 30 * 4)  # images of 20x30 with their labels
    kept = 1000 - toy.reads
    assert 0.8 * room < kept < room  # a few hundred bytes are for the name and the sizes


def test_ranks_and_micro_steps_hold_slices_of_the_global_batch():
    toy = Toy(crop=(16, 16))
    whole = batches(toy, batch_size=4)
    ranks = [batches(toy, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    micro = batches(toy, batch_size=2, accumulate=2)
    for step, batch in enumerate(whole):
        joined = torch.cat([ranks[0][step].images, ranks[1][step].images])
        assert torch.equal(joined, batch.images)
        joined = torch.cat([micro[2 * step].images, micro[2 * step + 1].images])
        assert torch.equal(joined, batch.images)


def test_each_epoch_is_a_permutation_even_across_batches():
    toy = Toy(length=5, crop=(8, 8))
    order = torch.cat([batch.index for batch in batches(toy, batch_size=12, stop=5)]).tolist()
    epochs = [order[first : first + 5] for first in range(0, 60, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 6


def test_epochs_and_seeds_augment_anew():
    toy = Toy(length=1, crop=(8, 8))
    (batch,) = batches(toy, batch_size=3, stop=1)
    (other,) = batches(toy, batch_size=3, stop=1, seed=4)
    assert not torch.equal(batch.images[0], batch.images[1])
    assert not torch.equal(batch.images, other.images)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generators_stay_untouched(workers):
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = state()
    batches(Toy(crop=(16, 16), color_jitter=1.0, workers=workers))
    list(eval_loader(Toy(), workers=workers))
    assert state() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_sample_is_one_clean_error(workers):
    with pytest.raises(DataError, match=r"^image2 is broken\.$"):
        batches(Toy(broken=(2,), workers=workers))


def test_broken_samples_are_replaced_counted_and_named(caplog):
    toy = Toy(broken=(2,), crop=(8, 8), on_error="skip", workers=1)

    def loader(start: int):
        keys = {"batch_size": 5, "seed": 0, "start": start, "stop": 6}
        return train_loader(toy, config=toy.config, **keys)

    whole, tail = loader(0), loader(4)
    with caplog.at_level(logging.WARNING):
        drawn = list(whole)
    assert all(len(batch) == 5 and 2 not in batch.index for batch in drawn)
    assert whole.skipped["image2 is broken."] >= 6
    assert caplog.text.count("image2 is broken.") == 1
    assert equal(drawn[4:], list(tail))


def test_a_set_of_broken_samples_ends_training():
    with pytest.raises(DataError, match="in a row"):
        batches(Toy(broken=(0, 1, 2, 3, 4), on_error="skip"))


def test_evaluation_sees_each_image_once_over_all_ranks():
    toy = Toy(length=7)
    parts = [list(eval_loader(toy, batch_size=2, rank=rank, world=3)) for rank in range(3)]
    names = [name for part in parts for _, names in part for name in names]
    index = [int(i) for part in parts for batch, _ in part for i in batch.index]
    assert names == [f"image{i}" for i in range(7)] and index == list(range(7))
    assert [len(names) for _, names in eval_loader(toy, batch_size=2, limit=3)] == [2, 1]


def test_more_ranks_than_images_leave_some_empty():
    counts = [len(list(eval_loader(Toy(length=2), rank=rank, world=4))) for rank in range(4)]
    assert sorted(counts) == [0, 0, 1, 1]


def test_evaluation_resizes_images_but_not_labels():
    toy = Toy(resize=(10, 14))
    ((batch, _),) = eval_loader(toy, limit=1)
    assert batch.images.shape == (1, 3, 10, 14) and batch.not_padding.all()
    assert torch.equal(batch.labels[0], torch.from_numpy(toy.read(0).label).long())


def test_evaluation_reports_what_it_skips():
    with pytest.raises(DataError, match="image1"):
        list(eval_loader(Toy(broken=(1,))))
    loader = eval_loader(Toy(broken=(1,), on_error="skip"), batch_size=2)
    assert [names for _, names in loader] == [["image0"], ["image2", "image3"], ["image4"]]
    assert loader.skipped == {"image1 is broken.": 1}


class Wrong(Toy):
    """The last image is special."""

    def __init__(self, change, **keys) -> None:
        super().__init__(**keys)
        self.change = change

    def read(self, index: int) -> Sample:
        sample = super().read(index)
        return self.change(sample) if index == 4 else sample


def larger(sample: Sample) -> Sample:
    return Sample(np.tile(sample.image, (2, 1, 1)), np.tile(sample.label, (2, 1)), sample.name)


def test_sizes_that_differ_are_named():
    with pytest.raises(DataError, match=r"image\d.*20x30.*image4.*40x30.*data\.crop.*eval\.batch"):
        list(eval_loader(Wrong(larger), batch_size=5))
    assert len(list(eval_loader(Wrong(larger)))) == 5
    assert len(batches(Wrong(larger, crop=(16, 16)))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: Sample(s.image, s.label[1:], s.name), r"image4.*20x30.*19x30"),
        (lambda s: Sample(s.image, s.label + 2, s.name), r"image4.*values 3, 4 .*0 to 2.*255"),
        (lambda s: Sample(s.image, s.label.astype(np.int32) - 1, s.name), r"image4.*values -1 "),
        (lambda s: Sample(s.image[..., 0], s.label, s.name), r"image4.*\(20, 30\).*RGB"),
    ],
)
def test_samples_that_make_no_sense_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        list(eval_loader(Wrong(change)))


def test_unlabelled_images():
    def bare(sample: Sample) -> Sample:
        return Sample(sample.image, None, sample.name)

    ((batch, _),) = eval_loader(Wrong(bare), batch_size=5)
    assert (batch.labels[4] == 255).all() and (batch.labels[:4] < 3).all()
    *_, (batch, _) = eval_loader(Wrong(bare))
    assert batch.labels is None and batch.valid.all()


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="no images"):
        batches(Toy(length=0))


class Stuck(Toy):
    """Loader processes never finish the second image."""

    def read(self, index: int) -> Sample:
        if get_worker_info() is not None and index != 0:
            time.sleep(1000)
        return super().read(index)


def loader_of(toy: Toy, workers: int = 1):
    keys = {"batch_size": 1, "seed": 0, "start": 0, "stop": 9}
    return train_loader(toy, config=toy.config.model_copy(update={"workers": workers}), **keys)


def test_a_stuck_worker_is_an_error_that_says_what_to_type_and_is_ended(monkeypatch):
    monkeypatch.setattr(workers_module, "STUCK_AFTER", 2)
    loader = loader_of(Stuck())
    with pytest.raises(MachineError, match=r"hang.*data\.workers=0.*--shm-size"):
        list(loader)
    assert multiprocessing.active_children() == []


def test_slow_samples_are_not_stuck_ones(monkeypatch):
    class Slow(Toy):
        def read(self, index: int) -> Sample:
            time.sleep(1.2)
            return super().read(index)

    monkeypatch.setattr(workers_module, "STUCK_AFTER", 2)
    toy = Slow(length=3)
    assert len(list(eval_loader(toy, batch_size=3, workers=1))) == 1  # longer than two looks


def test_who_waits_is_asked_and_may_give_up():
    class Enough(Exception):
        pass

    def enough():
        raise Enough

    loader = loader_of(Stuck())
    loader.workers.waiting = enough
    with pytest.raises(Enough):
        list(loader)
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error_of_the_machine():
    class Killed(Toy):
        def read(self, index: int) -> Sample:
            if get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(index)

    with pytest.raises(MachineError, match=r"loader process \(pid .* (was killed|unexpectedly)"):
        list(loader_of(Killed()))


@pytest.mark.parametrize("error", [ConnectionResetError, FileNotFoundError, EOFError])
def test_a_batch_whose_worker_was_killed_before_it_was_fetched(error, monkeypatch):
    """As such it looks before torch has noticed: a handle that leads nowhere."""

    class Broken:
        def __iter__(self):
            return self

        def __next__(self):
            raise error("reset")

    workers, child = workers_module.Workers(1), SimpleNamespace(pid=71, exitcode=None)
    monkeypatch.setattr(workers_module.multiprocessing, "active_children", lambda: [child])
    with pytest.raises(error, match="reset"):  # of the data themselves: all processes live
        list(workers.loads(Broken()))
    child.exitcode = -signal.SIGKILL
    with pytest.raises(MachineError, match=r"loader process \(pid 71\) was killed"):
        list(workers.loads(Broken()))
    child.exitcode = 3
    with pytest.raises(MachineError, match=r"loader process \(pid 71\) ended unexpectedly"):
        list(workers.loads(Broken()))


def test_a_batch_for_which_there_is_no_shared_memory_is_an_error(monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # forked processes have it, too
    with pytest.raises(MachineError, match=r"/dev/shm.*--shm-size.*data\.workers=0"):
        list(loader_of(Toy()))


def test_processes_end_with_the_program_though_they_are_still_iterated_over():
    batches = iter(loader_of(Toy()))
    next(batches)
    assert multiprocessing.active_children()
    workers_module.end_all()  # what is registered for the exit
    assert multiprocessing.active_children() == []


def test_workers_outlive_signals_to_the_group_and_use_one_thread():
    class Worker(Toy):
        def read(self, index: int) -> Sample:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            if cv2.getNumThreads() != 1:
                raise DataError("OpenCV has threads of its own")
            return super().read(index)

    assert len(batches(Worker(workers=1), stop=2)) == 2
