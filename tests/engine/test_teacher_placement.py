"""A teacher's own precision and memory format, and what is chosen on CUDA."""

import pytest
import torch
from resuming import make_trainer
from toy_run import teacher_net, toy_config

from segkd.config.schema import RuntimeConfig, TeacherConfig
from segkd.engine.about_teachers import about_teachers
from segkd.engine.placement import uses_channels_last
from segkd.engine.run_folder import _difference
from segkd.models.frozen import Teacher
from segkd.models.teacher_members import precision_of

IMAGES = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def the_teacher(trainer):
    return trainer.parts.teachers.members["main"]


@pytest.mark.parametrize(
    ("run", "own", "expected"),
    [
        ("fp32", "auto", torch.float32),
        ("fp32", "bf16", torch.bfloat16),
        ("bf16", "auto", torch.bfloat16),
        ("bf16", "fp32", torch.float32),
    ],
)
def test_a_teacher_computes_in_its_own_precision(run, own, expected):
    half = {"fp32": None, "bf16": torch.bfloat16}[run]
    teacher = Teacher(teacher_net(), half=precision_of(_entry(precision=own), half, CPU, False))
    with torch.autocast("cpu", torch.bfloat16, enabled=half is not None):  # as in the dry step
        assert teacher(IMAGES).logits.dtype is expected


def _entry(**keys):
    return TeacherConfig(arch="fpn", **keys)


def test_on_cuda_a_frozen_teacher_is_bf16_if_the_device_has_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, has=has: has)
        expected = torch.bfloat16 if has else None
        assert precision_of(_entry(), None, CUDA, gradient=False) is expected
        assert precision_of(None, None, CUDA, gradient=False) is expected, "the caller's network"
        assert precision_of(_entry(), None, CUDA, gradient=True) is None, "its slopes are used"
        assert precision_of(_entry(precision="fp32"), None, CUDA, gradient=False) is None
        assert precision_of(_entry(), torch.float16, CUDA, gradient=False) is torch.float16


@pytest.mark.parametrize("last", [True, False])
def test_a_teacher_has_its_own_memory_format(last):
    images = IMAGES.contiguous(
        memory_format=torch.contiguous_format if last else torch.channels_last
    )
    teacher = Teacher(teacher_net(), channels_last=last)
    seen = []
    teacher.network.encoder[0][0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = teacher(images).logits
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is last
    weight = teacher.network.encoder[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is last
    torch.testing.assert_close(out, Teacher(teacher.network)(IMAGES).logits, rtol=1e-4, atol=1e-5)


def test_the_run_leaves_a_teacher_its_format(tmp_path):
    config = toy_config(
        tmp_path, runtime={"device": "cpu", "threads": 1, "channels_last": True}, methods={"kd": {}}
    )
    trainer = make_trainer(config, teachers={"main": teacher_net()})
    weight = the_teacher(trainer).network.encoder[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last), "as the run by default"


def test_the_student_is_channels_last_on_cuda_alone_unless_told():
    chosen = [
        uses_channels_last(RuntimeConfig(channels_last=key), device)
        for key in (None, True, False)
        for device in ("cuda", "cpu")
    ]
    assert chosen == [True, False, True, True, False, False]


def test_a_run_of_the_earlier_default_goes_on(tmp_path):
    runtime = {"device": "cpu", "threads": 1}
    new, old, other = (
        toy_config(tmp_path, runtime=runtime | extra)
        for extra in ({}, {"channels_last": False}, {"channels_last": True})
    )
    assert not _difference(old, new)
    assert _difference(other, new)


def test_the_log_names_a_precision_of_its_own(tmp_path):
    config = toy_config(
        tmp_path, runtime={"device": "cpu", "threads": 1, "precision": "bf16"}, methods={"kd": {}}
    )
    trainer = make_trainer(config, teachers={"main": teacher_net()})
    assert not [line for line in about_teachers(config, trainer.parts) if "bf16" in line]
    the_teacher(trainer).dtype = None
    assert "teacher main: fp32, the student bf16" in about_teachers(config, trainer.parts)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"ensemble": ["a", "b"], "precision": "bf16"}, "members of this ensemble"),
        ({"black_box": {"onnx": "a.onnx"}, "channels_last": True}, "has its own"),
        ({"arch": "fpn", "precision": "bf32"}, "bf16"),
    ],
)
def test_what_has_no_precision_is_refused(entry, says):
    with pytest.raises(ValueError, match=says):
        TeacherConfig(**entry)


def test_a_stored_entry_can_be_read_again():
    for entry in (_entry(precision="bf16"), TeacherConfig(black_box={"onnx": "a.onnx"})):
        assert TeacherConfig.model_validate(entry.model_dump(mode="json")) == entry
