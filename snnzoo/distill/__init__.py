"""Training a spiking student with a pretrained ANN (arXiv 2503.16572)."""

from snnzoo.distill.adapter import Adapter
from snnzoo.distill.task import ALPHA_SCHEDULES, BETAS, AnnGuidedDistillationTask, scheduled_alpha
from snnzoo.distill.teacher import StagedTeacher, create_teacher

__all__ = [
    "ALPHA_SCHEDULES",
    "BETAS",
    "Adapter",
    "AnnGuidedDistillationTask",
    "StagedTeacher",
    "create_teacher",
    "scheduled_alpha",
]
