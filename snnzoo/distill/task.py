"""ANN-guided distillation by hybrid block-wise replacement (arXiv 2503.16572) as a timm training task."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from timm.task import TrainingTask, create_classification_loss
from timm.utils import unwrap_model
from torch import Tensor, nn

from snnzoo.distill.adapter import Adapter
from snnzoo.distill.teacher import FrozenTeacher, StagedTeacher
from snnzoo.errors import InputError
from snnzoo.modes import evaluating

ALPHA_SCHEDULES = ("fixed", "rising", "falling")
BETAS = ("uniform", "halving")


def scheduled_alpha(schedule: str, alpha: float, epoch: int, epochs: int) -> float:
    """alpha of an epoch: ``alpha`` itself if fixed, else linear from 0 to 1 (rising) or from 1 to 0 (falling)."""
    if schedule == "fixed":
        return alpha
    progress = epoch / max(epochs - 1, 1)
    return progress if schedule == "rising" else 1 - progress


class StudentWithAdapters(nn.Module):
    """What is trained, as one module with one forward: the student, and an adapter C_k for each branch.

    Args:
        student: model with timm's ``forward_intermediates``.
        adapters: by branch name.
        indices: by branch name, the index of the student's intermediate that the branch leaves from.
    """

    def __init__(self, student: nn.Module, adapters: dict[str, nn.Module], indices: dict[str, int]):
        super().__init__()
        self.student = student
        self.adapters = nn.ModuleDict(adapters)
        self.indices = indices

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images to the student's logits, and each branch's adapted feature map."""
        if not self.indices:
            return self.student(x), {}
        wanted = sorted(set(self.indices.values()))
        final, intermediates = self.student.forward_intermediates(x, indices=wanted)
        features = dict(zip(wanted, intermediates, strict=True))
        adapted = {name: self.adapters[name](features[index]) for name, index in self.indices.items()}
        return self.student.forward_head(final), adapted

    def no_weight_decay(self) -> set[str]:
        """The student's own choice."""
        names = self.student.no_weight_decay() if hasattr(self.student, "no_weight_decay") else ()
        return {f"student.{name}" for name in names}


class AnnGuidedDistillationTask(TrainingTask):
    """Train a student beside hybrids of itself and a frozen teacher.

    With blocks S_0..S_n of the student and A_0..A_n of the teacher, hybrid k is {S_0..S_k, C_k, A_{k+1}..A_n}: the
    student's rates after block k, mapped by the adapter C_k, carried on by the rest of the teacher. The loss is

        L = (1 - alpha) CE(y_S, y) + alpha KL(y_A || y_S)
            + sum_k beta_k [(1 - alpha) CE(y_Mk, y) + alpha KL(y_A || y_Mk)]

    without a temperature. Trained are the student and the adapters; the student alone is evaluated and checkpointed,
    the adapters are the task's state. Losses are computed in float32.

    Where the two have different numbers of stages they are aligned from the last one back.

    Args:
        student_model: a zoo model (or any timm model with ``forward_intermediates`` and ``pretrained_cfg``).
        teacher_model: a timm model with weights; it is frozen.
        criterion: CE; timm's cross entropy by default.
        branches: which hybrids: ``'main'`` (after every stage but the last), ``'all'``, ``'none'`` (logits only), or
            names from ``'stem'``, ``'1'``, ``'2'``, …, ``'fc'`` (after the last stage).
        alpha: weight of the teacher against the labels, in [0, 1]; may be changed later.
        beta: weights of the branches: ``'uniform'`` (1 / number of branches) or ``'halving'`` (1 / 2^(n - k)).
        input_size: ``(C, H, W)`` of the images; the student's ``pretrained_cfg`` says by default.
        device, dtype, verbose: as for every timm task; the device is the student's by default.

    Raises:
        InputError: an option outside its range, teacher and student differ in classes, the teacher cannot be split,
            or has no stage for a branch.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        branches: str | Sequence[str] = "main",
        alpha: float = 0.5,
        beta: str = "uniform",
        input_size: tuple[int, int, int] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ):
        device = device or next(student_model.parameters()).device
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha must lie in [0, 1], got {alpha!r}")
        if beta not in BETAS:
            raise InputError(f"beta must be one of {BETAS}, got {beta!r}")
        if teacher_model.num_classes != student_model.num_classes:
            raise InputError(
                f"the teacher has {teacher_model.num_classes} classes, the student {student_model.num_classes}"
            )
        self.alpha = alpha
        self.criterion = criterion or create_classification_loss()
        cfg = student_model.pretrained_cfg
        input_size = tuple(input_size or (student_model.in_chans, *cfg["input_size"][1:]))
        student_model, teacher_model = student_model.to(self.device), teacher_model.to(self.device)

        student_points = [point["module"] for point in student_model.feature_info]
        names = ["stem", *(str(k) for k in range(1, len(student_points) - 1)), "fc"]
        chosen = _choose(branches, names)
        if chosen:
            self.teacher = StagedTeacher(teacher_model, input_size).to(self.device)
            offset = len(self.teacher.points) - len(names)
            self._enters = {name: names.index(name) + offset for name in chosen}
            missing = [name for name, index in self._enters.items() if index < 0]
            if missing:
                raise InputError(
                    f"teacher {self.teacher.name!r} has no stage that answers to branch {', '.join(missing)}: aligned "
                    f"from the last stage back, it has {', '.join(names[-offset:])}"
                )
            shapes = _feature_shapes(student_model, input_size)
            adapters = {
                name: Adapter(shapes[names.index(name)], self.teacher.feature_shapes[index])
                for name, index in self._enters.items()
            }
        else:
            self.teacher = FrozenTeacher(teacher_model, input_size).to(self.device)
            self._enters, adapters = {}, {}
        depth = len(names) - 1
        self.betas = {
            name: 1 / len(chosen) if beta == "uniform" else 0.5 ** (depth - names.index(name)) for name in chosen
        }
        indices = {name: names.index(name) for name in chosen}
        self.trainable_module = StudentWithAdapters(student_model, adapters, indices).to(self.device)

        for key, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            value = adapt_to_chs(cfg.get(key) or default, input_size[0])
            value = torch.tensor(value, device=self.device, dtype=self.dtype).view(1, -1, 1, 1)
            self.register_buffer(f"student_{key}", value, persistent=False)

    @torch.no_grad()
    def begin(self, images: Tensor) -> None:
        """Start the hybrids in the teacher's range: each adapter with the mean and spread of the teacher's feature.

        Call it once, before the task is compiled or distributed. Without it adapters begin with mean 0 and variance 1,
        which the rest of the teacher has never seen, and the first steps are lost on that.

        Args:
            images: a batch to train on, ``[B, C, H, W]`` or ``[B, T, C, H, W]``, normalised for the student.
        """
        if self._enters:
            features, _ = self.teacher.forward_features(self._teacher_input(images))
            for name, index in self._enters.items():
                self.trainable_module.adapters[name].imitate(features[index])

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> "AnnGuidedDistillationTask":
        """Wrap what is trained in DistributedDataParallel."""
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """The student's parameters (without its classifier if ``exclude_head``) and the adapters'."""
        trainable = unwrap_model(self.trainable_module)
        student = list(trainable.student.parameters())
        return (student[:-2] if exclude_head else student) + list(trainable.adapters.parameters())

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student alone."""
        resolved = unwrap_model(super().get_eval_model(module=module, ema=ema))
        return resolved.student if isinstance(resolved, StudentWithAdapters) else resolved

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The adapters' weights."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None or not self._enters:
            return {}
        return {"adapters": unwrap_model(module).adapters.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """The adapters' weights from a checkpoint.

        Raises:
            InputError: the checkpoint was written with other branches or another teacher.
        """
        module = module if module is not None else self.get_trainable_module(ema=ema)
        adapters = unwrap_model(module).adapters
        try:
            adapters.load_state_dict((state or {}).get("adapters", {}), strict=strict)
        except RuntimeError as error:
            raise InputError(
                f"the checkpoint's adapters are not those of branches {list(self._enters) or 'none'} with this "
                f"teacher; resume with the branches and the teacher it was trained with"
            ) from error

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile what is trained; the student is still evaluated and saved uncompiled."""
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        return self.trainable_module

    def _teacher_input(self, x: Tensor) -> Tensor:
        if x.ndim == 5:  # a network that knows no time sees the mean of the frames
            x = x.mean(1)
        return self.teacher.normalize_input(x, self.student_mean, self.student_std)

    def _loss(self, logits: Tensor, target: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(1 - alpha) CE + alpha KL``, CE, KL; in float32."""
        logits = logits.float()
        ce = self.criterion(logits, target)
        kl = F.kl_div(
            F.log_softmax(logits, 1), F.log_softmax(teacher_logits.float(), 1), reduction="batchmean", log_target=True
        )
        return (1 - self.alpha) * ce + self.alpha * kl, ce, kl

    def _by_branch(self, adapted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapted feature maps to the hybrids' logits."""
        if not adapted:
            return {}
        logits = self.teacher.resume({self._enters[name]: feature for name, feature in adapted.items()})
        return {name: logits[self._enters[name]] for name in adapted}

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One training forward.

        Args:
            input: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``, normalised for the student.
            target: labels ``[B]`` (or whatever the criterion takes).

        Returns:
            ``loss``; ``output``, the student's logits; ``task_loss`` (CE), ``kd_loss`` (KL), and for each branch
            ``branch_<name>_loss``, its part of the sum before beta.
        """
        output, adapted = self.trainable_module(input)
        with torch.no_grad():
            teacher_logits = self.teacher(self._teacher_input(input))
        loss, ce, kl = self._loss(output, target, teacher_logits)
        parts = {"task_loss": ce.detach(), "kd_loss": kl.detach()}
        for name, logits in self._by_branch(adapted).items():
            branch_loss, _, _ = self._loss(logits, target, teacher_logits)
            loss = loss + self.betas[name] * branch_loss
            parts[f"branch_{name}_loss"] = branch_loss.detach()
        return {"loss": loss, "output": output, **parts}

    @torch.no_grad()
    def inspect(self, input: Tensor) -> dict[str, dict[str, Tensor] | Tensor]:
        """What the paper plots (its Figs. 2 and 3), for one batch, in the task's present mode.

        Args:
            input: images, normalised for the student.

        Returns:
            ``output``, the student's logits; ``hybrids``, every hybrid's logits by branch; ``similarity``, by branch
            the cosine similarity of C_k(F_Sk) and F_Ak, ``[B]``.
        """
        output, adapted = unwrap_model(self.trainable_module)(input)
        similarity = {}
        if adapted:
            features, _ = self.teacher.forward_features(self._teacher_input(input))
            similarity = {
                name: F.cosine_similarity(feature.flatten(1).float(), features[self._enters[name]].flatten(1).float())
                for name, feature in adapted.items()
            }
        return {"output": output, "hybrids": self._by_branch(adapted), "similarity": similarity}


def _choose(branches: str | Sequence[str], names: list[str]) -> list[str]:
    """The branches asked for, in the network's order."""
    groups = {"main": names[1:-1], "all": names, "none": []}
    if isinstance(branches, str):
        branches = [branches]
    if len(branches) == 1 and branches[0] in groups:
        return groups[branches[0]]
    unknown = [name for name in branches if name not in names]
    if unknown:
        raise InputError(f"branches: no {', '.join(map(repr, unknown))}; choose main, all, none or any of {names}")
    return [name for name in names if name in branches]


@torch.no_grad()
def _feature_shapes(model: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """``(C, H, W)`` of the model's intermediates; leaves its mode and batch-norm statistics as they were."""
    probe = torch.zeros(1, *input_size).to(next(model.parameters()))
    with evaluating(model):
        features = model.forward_intermediates(probe, intermediates_only=True)
    return [tuple(feature.shape[1:]) for feature in features]
