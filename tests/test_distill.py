"""Cutting teachers, adapters, and the loss against its formula."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from snnzoo import InputError
from snnzoo.distill import Adapter, AnnGuidedDistillationTask, StagedTeacher, create_teacher, scheduled_alpha

TEACHERS = [
    "resnet18", "resnet34", "resnet50", "regnety_002", "mobilenetv3_small_050", "convnext_atto", "efficientnet_lite0",
    "cifar_resnet18", "cifar_resnet20", "cifar_resnet32", "cifar_resnet56",
]  # fmt: skip


def make_task(student="snn_resnet20_t2", teacher="cifar_resnet20", size=16, **kwargs):
    student = timm.create_model(student)
    return AnnGuidedDistillationTask(
        student, timm.create_model(teacher, num_classes=10), input_size=(3, size, size), **kwargs
    )


# --- the teacher -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEACHERS)
def test_any_teacher_can_be_entered_after_any_stage(name):
    model = timm.create_model(name, num_classes=7).double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    logits = model.eval()(x)
    captured = []
    hooks = [
        model.get_submodule(point["module"]).register_forward_hook(lambda m, args, out: captured.append(out.clone()))
        for point in model.feature_info
    ]
    model(x)
    for hook in hooks:
        hook.remove()

    teacher = StagedTeacher(model, (3, 32, 32))
    features, chained = teacher.forward_features(x)
    torch.testing.assert_close(chained, logits)
    for feature, expected, shape in zip(features, captured, teacher.feature_shapes, strict=True):
        torch.testing.assert_close(feature, expected)
        assert feature.shape[1:] == shape
    for index in range(len(features)):
        torch.testing.assert_close(teacher.resume({index: features[index]})[index], logits, rtol=1e-4, atol=1e-4)
    together = teacher.resume(dict(enumerate(features)))
    for value in together.values():
        torch.testing.assert_close(value, logits, rtol=1e-4, atol=1e-4)


def test_teacher_stays_frozen():
    task = make_task()
    before = {k: v.clone() for k, v in task.teacher.model.state_dict().items()}
    task.train()
    task.teacher.train()
    assert not any(module.training for module in task.teacher.modules())
    task.teacher.model.train()  # not even by way of the model it was made from
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), 0.1)
    task(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))["loss"].backward()
    optimizer.step()
    assert all(p.grad is None for p in task.teacher.parameters())
    torch.testing.assert_close(task.teacher.model.state_dict(), before, rtol=0, atol=0)


class Tangled(nn.Module):
    """Adds the first stage's output to the second's: cannot be entered after the second."""

    feature_info = (dict(module="one", num_chs=4, reduction=1), dict(module="two", num_chs=4, reduction=1))

    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 10)
        self.num_classes = 10

    def forward(self, x):
        one = self.one(x)
        return self.fc((self.two(one) + one).mean((2, 3)))


class Branching(Tangled):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Twice(Tangled):
    def forward(self, x):
        return self.fc(self.two(self.two(self.one(x))).mean((2, 3)))


class Nameless(Tangled):
    feature_info = ()


class Tokens(Tangled):
    def forward(self, x):
        x = self.one(x).flatten(2)
        return self.fc(self.two(x.unsqueeze(3)).mean((2, 3)))


class WrongWidth(Twice):
    feature_info = (dict(module="one", num_chs=5, reduction=1),)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Tangled, "what comes after 'two' also depends on what came before it"),
        (Branching, "its forward cannot be traced"),
        (Twice, r"its forward calls \['one', 'two', 'two'\] where feature_info names \['one', 'two'\]"),
        (Nameless, "it has no feature_info"),
        (WrongWidth, r"at 'one' it has a feature of shape \(2, 4, 8, 8\), not \[B, 5, H, W\]"),
    ],
)
def test_a_teacher_that_cannot_be_split(model, reason):
    with pytest.raises(InputError, match=rf"teacher '{model.__name__}' cannot be split into stages: {reason}.*'none'"):
        StagedTeacher(model(), (3, 8, 8))


def test_a_transformer_cannot_be_split():
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32)
    with pytest.raises(
        InputError, match="'vit_tiny_patch16_224' cannot be split.*'blocks.0' it has a feature of shape"
    ):
        StagedTeacher(vit, (3, 32, 32))
    task = AnnGuidedDistillationTask(timm.create_model("snn_resnet20_t1"), vit, branches="none")
    assert task(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))["kd_loss"] > 0


@pytest.mark.parametrize("branches", ["main", "none"])
def test_a_teacher_that_does_not_take_the_images(branches):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    with pytest.raises(InputError, match=r"teacher 'vit_tiny_patch16_224' does not take images of size \(3, 32, 32\)"):
        AnnGuidedDistillationTask(timm.create_model("snn_resnet20_t1"), vit, branches=branches)


def test_images_for_the_teacher():
    """Unchanged where both are normalised alike; and no value is looked at, for which a host waits for its GPU."""
    images, mean, std = torch.randn(2, 3, 8, 8), torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1) + 0.1
    teacher = StagedTeacher(timm.create_model("cifar_resnet20"), (3, 8, 8))
    assert torch.equal(teacher.normalize_input(images, teacher.mean_kd, teacher.std_kd), images)
    pixels = images * std + mean
    expected = (pixels - teacher.mean_kd) / teacher.std_kd
    torch.testing.assert_close(teacher.normalize_input(images, mean, std), expected)
    unseen = [x.to("meta") for x in (images, mean, std)]  # a device that has no values
    assert teacher.to("meta").normalize_input(*unseen).shape == images.shape


def test_create_teacher(tmp_path):
    from safetensors.torch import save_file

    model = timm.create_model("cifar_resnet20")
    weights = {k.replace("fc.", "linear."): v for k, v in model.state_dict().items()}  # the published names
    save_file(weights, tmp_path / "w.safetensors")
    teacher = create_teacher("cifar_resnet20", 10, checkpoint=tmp_path / "w.safetensors")
    torch.testing.assert_close(teacher.state_dict(), model.state_dict())
    with pytest.raises(InputError, match="does not fit ResNet with 100 classes.*size mismatch for fc.weight"):
        create_teacher("cifar_resnet20", 100, checkpoint=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no model named 'cifar_resnet21'; did you mean cifar_resnet"):
        create_teacher("cifar_resnet21", 10)
    with pytest.raises(InputError, match="No pretrained weights exist for cifar_resnet20.*give a file of weights"):
        create_teacher("cifar_resnet20", 10)


def test_a_pretrained_head_is_never_replaced(monkeypatch):
    """timm would give a 1000-class teacher a new random head of 10 classes without a word."""
    monkeypatch.setattr("snnzoo.weights.timm.create_model", lambda name, **kwargs: Tangled())
    with pytest.raises(InputError, match="trained on 10 classes, the student has 100: fine-tune"):
        create_teacher("resnet18", 100)


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [(8, 4, 4), (8, 8, 8), (8, 16, 16), (3, 1, 1)])
def test_adapter_shapes(out):
    assert Adapter((5, 8, 8), out)(torch.randn(2, 5, 8, 8)).shape == (2, *out)


def test_adapters_begin_in_the_teachers_range():
    """A student that is the teacher: every hybrid then begins as the teacher, but for what a ReLU at -2 s.d. cuts."""
    teacher = timm.create_model("cifar_resnet20")
    images, labels = torch.rand(64, 3, 16, 16), torch.zeros(64, dtype=torch.long)
    with torch.no_grad():  # statistics of these images, so that training mode changes nothing in the student
        for norm in (m for m in teacher.train().modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0
        teacher(images)
    student = timm.create_model("cifar_resnet20")
    student.load_state_dict(teacher.state_dict())
    task = AnnGuidedDistillationTask(student, teacher, branches=["stem", "1", "2", "fc"], input_size=(3, 16, 16))
    task.train().student_mean.copy_(task.teacher.mean_kd)
    task.student_std.copy_(task.teacher.std_kd)

    def similarity_and_distance():
        found = task.inspect(images)
        logits = task.teacher(images)
        return {name: (float(found["similarity"][name].mean()), float((found["hybrids"][name] - logits).abs().mean()))
                for name in found["hybrids"]}  # fmt: skip

    before = similarity_and_distance()
    task.begin(images)
    after = similarity_and_distance()
    assert sorted(after) == ["1", "2", "fc", "stem"]
    for name, (similarity, distance) in after.items():
        assert similarity > 0.995
        assert distance < before[name][1] / 4
    assert task(images, labels)["loss"].isfinite()


def test_an_adapter_of_another_width_takes_the_teachers_mean_and_spread():
    adapter, features = Adapter((4, 8, 8), (6, 4, 4)).train(), 3 + 2 * torch.rand(16, 6, 4, 4)
    adapter.imitate(features)
    std, mean = torch.std_mean(adapter(torch.rand(64, 4, 8, 8)), (0, 2, 3))
    expected_std, expected_mean = torch.std_mean(features, (0, 2, 3))
    torch.testing.assert_close(mean, expected_mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(std, expected_std, rtol=1e-2, atol=1e-2)


def test_adapter_size_is_the_papers():
    """0.17 M parameters in all for ResNet-18's main branches."""
    task = make_task("snn_resnet18_t1", "cifar_resnet18", size=32)
    assert list(task.trainable_module.adapters) == ["1", "2", "3"]
    assert round(sum(p.numel() for p in task.trainable_module.adapters.parameters()) / 1e6, 2) == 0.17


# --- the loss ----------------------------------------------------------------------------------------------------


def plain_loss(logits, target, teacher_logits, alpha):
    """(1 - alpha) CE + alpha sum p_A log(p_A / p), from the definition."""
    log_p, p_teacher = logits.log_softmax(1), teacher_logits.softmax(1)
    ce = -log_p[range(len(target)), target].mean()
    kl = (p_teacher * (p_teacher.log() - log_p)).sum(1).mean()
    return (1 - alpha) * ce + alpha * kl


@pytest.mark.parametrize("beta", ["uniform", "halving"])
@pytest.mark.parametrize("branches", ["main", "all", ["fc"], ["stem", "2"]])
def test_loss_is_the_papers(beta, branches):
    """Against hybrids run the slow way: one at a time, by replacing the teacher's stages' outputs in its forward."""
    alpha = 0.3
    task = make_task(branches=branches, alpha=alpha, beta=beta)
    task.double()
    x, target = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    student, teacher = task.trainable_module.student, task.teacher.model
    task.train()
    result = task(x, target)

    with torch.no_grad():
        final, features = student.forward_intermediates(x)
        logits = student.forward_head(final)
        mean = torch.tensor(student.pretrained_cfg["mean"], dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(student.pretrained_cfg["std"], dtype=torch.float64).view(1, -1, 1, 1)
        mean_t = torch.tensor(teacher.pretrained_cfg["mean"], dtype=torch.float64).view(1, -1, 1, 1)
        std_t = torch.tensor(teacher.pretrained_cfg["std"], dtype=torch.float64).view(1, -1, 1, 1)
        x_teacher = (x * std + mean - mean_t) / std_t
        teacher_logits = teacher(x_teacher)
        expected = plain_loss(logits, target, teacher_logits, alpha)
        names = ["stem", "1", "2", "fc"]
        chosen = {"main": ["1", "2"], "all": names}.get(branches if isinstance(branches, str) else "", branches)
        for name in chosen:
            index = names.index(name)
            adapted = task.trainable_module.adapters[name](features[index])
            stage = teacher.get_submodule(teacher.feature_info[index]["module"])
            hook = stage.register_forward_hook(lambda module, args, out, adapted=adapted: adapted)
            hybrid_logits = teacher(x_teacher)
            hook.remove()
            weight = 1 / len(chosen) if beta == "uniform" else 0.5 ** (3 - index)
            expected = expected + weight * plain_loss(hybrid_logits, target, teacher_logits, alpha)
    # the student's and the adapters' batch norms see the same batch again: same statistics, same logits
    torch.testing.assert_close(result["output"], logits)
    torch.testing.assert_close(result["loss"], expected.to(result["loss"]), rtol=1e-5, atol=1e-6)
    assert {k for k in result if k.startswith("branch_")} == {f"branch_{name}_loss" for name in chosen}

    result["loss"].backward()
    assert all(p.grad is not None for p in task.trainable_module.parameters())


def test_logits_only_and_labels_only():
    task = make_task(branches="none", alpha=1.0)
    x, target = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    result = task.train()(x, target)
    assert set(result) == {"loss", "output", "task_loss", "kd_loss"}
    torch.testing.assert_close(result["loss"], result["kd_loss"])
    task.alpha = 0.0
    result = task(x, target)
    torch.testing.assert_close(result["loss"], F.cross_entropy(result["output"], target))


@pytest.mark.parametrize("teacher", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_teachers_of_other_depth_and_width(teacher):
    task = make_task(teacher=teacher, size=32)
    result = task.train()(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    result["loss"].backward()
    assert math.isfinite(result["loss"].item())
    assert all(p.grad is not None for p in task.trainable_module.parameters())


def test_branches_that_do_not_exist():
    with pytest.raises(
        InputError, match=r"branches: no '5'; choose main, all, none or any of \['stem', '1', '2', 'fc'\]"
    ):
        make_task(branches=["1", "5"])
    with pytest.raises(InputError, match="no stage that answers to branch stem: .* it has 1, 2, 3, fc"):
        make_task("snn_resnet18_t1", "convnext_atto", size=32, branches="all")


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [(dict(alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"), (dict(beta="quarter"), "beta must be one of")],
)
def test_bad_options(kwargs, match):
    with pytest.raises(InputError, match=match):
        make_task(**kwargs)


def test_classes_must_agree():
    with pytest.raises(InputError, match="the teacher has 1000 classes, the student 10"):
        AnnGuidedDistillationTask(timm.create_model("snn_resnet20_t1"), timm.create_model("resnet18"))


def test_alpha_schedules():
    assert [scheduled_alpha("fixed", 0.5, e, 3) for e in range(3)] == [0.5] * 3
    assert [scheduled_alpha("rising", 0.5, e, 3) for e in range(3)] == [0, 0.5, 1]
    assert [scheduled_alpha("falling", 0.5, e, 3) for e in range(3)] == [1, 0.5, 0]


# --- as a timm task ----------------------------------------------------------------------------------------------


def test_checkpoint_holds_the_student_and_task_state_the_adapters():
    task, other = make_task(), make_task()
    state = task.get_checkpoint_state()
    assert set(state["state_dict"]) == set(timm.create_model("snn_resnet20_t2").state_dict())
    assert set(state["task_state"]["adapters"]) == set(task.trainable_module.adapters.state_dict())
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    torch.testing.assert_close(other.trainable_module.state_dict(), task.trainable_module.state_dict())
    with pytest.raises(InputError, match=r"not those of branches \['stem'\]"):
        make_task(branches=["stem"]).load_checkpoint_state(state["state_dict"], state["task_state"])


def test_clipping_leaves_out_the_students_classifier():
    task = make_task()
    clipped = {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    left_out = {name for name, p in task.trainable_module.named_parameters() if id(p) not in clipped}
    assert left_out == {"student.fc.weight", "student.fc.bias"}


def test_grey_images():
    student, teacher = (timm.create_model(name, in_chans=1) for name in ("snn_resnet20_t1", "cifar_resnet20"))
    task = AnnGuidedDistillationTask(student, teacher).train()
    x = torch.randn(2, 1, 32, 32)
    assert task(x, torch.tensor([0, 1]))["loss"].isfinite()
    mean, mean_t = (sum(m.pretrained_cfg["mean"]) / 3 for m in (student, teacher))
    std, std_t = (sum(m.pretrained_cfg["std"]) / 3 for m in (student, teacher))
    torch.testing.assert_close(task._teacher_input(x), (x * std + mean - mean_t) / std_t, rtol=1e-4, atol=1e-5)


def test_ema_follows():
    task = make_task()
    task.setup_ema(decay=0.0)
    with torch.no_grad():
        task.trainable_module.student.fc.bias.add_(1)
    task.update_ema()
    torch.testing.assert_close(task.get_eval_model(ema=True).fc.bias, task.trainable_module.student.fc.bias)


def test_inspect_measures_hybrids_and_similarity():
    task = make_task()
    x = torch.randn(3, 3, 16, 16)
    seen = task.eval().inspect(x)
    torch.testing.assert_close(seen["output"], task.get_eval_model()(x))
    assert set(seen["hybrids"]) == set(seen["similarity"]) == {"1", "2"}
    assert all(logits.shape == (3, 10) for logits in seen["hybrids"].values())
    # an adapter that hands on the teacher's own feature: its hybrid is the teacher, the similarity 1
    features, logits = task.teacher.forward_features(task._teacher_input(x))

    class Perfect(nn.Module):
        def forward(self, rates):
            return features[2]

    task.trainable_module.adapters["2"] = Perfect()
    seen = task.inspect(x)
    torch.testing.assert_close(seen["hybrids"]["2"], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen["similarity"]["2"], torch.ones(3))
    assert seen["similarity"]["1"].max() < 0.99
