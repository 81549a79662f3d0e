"""Outputs of a teacher from disk and, for what is missing, from the network."""

import torch
from toy_run import CLASSES

from segkd.config.schema import ModelConfig
from segkd.data.base import DataConfig
from segkd.data.cached_outputs import CachedOutputs, CacheFolder, batched
from segkd.data.output_files import OutputFolder
from segkd.models.build import build_network
from segkd.models.frozen import Teacher
from segkd.models.output_cache import OutputCache
from segkd.structures import Batch


def test_logits_and_existence_are_put_together(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(arch="toy", exist_head={}, options={"width": 8})
    teacher = Teacher(build_network(config, len(CLASSES)))
    cache = OutputCache("t", teacher, CacheFolder(OutputFolder(tmp_path), "views", 8))
    look = CachedOutputs({"t": cache.source}, DataConfig(name="toy"))
    images = torch.randint(256, (3, 3, 32, 48), dtype=torch.uint8)
    wanted = teacher(images)

    def outputs(*places):
        chosen = images[list(places)]
        arrays = [image.permute(1, 2, 0).numpy() for image in chosen]
        items = [look(array, array, p, 1, 0) for array, p in zip(arrays, places, strict=True)]
        inside = torch.ones(len(places), 32, 48, dtype=torch.bool)
        batch = Batch(chosen, None, inside, torch.tensor(places), extra=batched(items))
        return cache.outputs(chosen, batch)

    cache.writes = True
    outputs(2)
    assert (cache.read, cache.computed) == (0, 1)
    for places, counts in (((0, 2), (1, 2)), ((2, 1, 0), (3, 3)), ((1, 0, 2), (6, 3))):
        found = outputs(*places)
        torch.testing.assert_close(found.logits, wanted.logits[list(places)].half().float())
        torch.testing.assert_close(found.exist, wanted.exist[list(places)])
        assert found.logits.dtype == torch.float32 and found.kind == "logits"
        assert (cache.read, cache.computed) == counts
