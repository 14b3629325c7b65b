"""The options of train_distill.py."""

import argparse

import torch
from timm.optim import get_optimizer_info
from timm.utils import ParseKwargs
from torch import nn

from snnzoo.data import AUTO_AUGMENT, FRAME_DATASETS, WORKERS, data_config
from snnzoo.distill import ALPHA_SCHEDULES, BETAS
from snnzoo.errors import InputError
from snnzoo.hub import model_args
from snnzoo.scripting import as_input_error
from snnzoo.weights import PREPARED

# timm's
INTERPOLATIONS = ("random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The trainer's options: timm's names wherever timm has the option."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flag = dict(action="store_true", default=False)

    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="root of the data")
    add(
        "--dataset", metavar="NAME", default="", help="timm's names: torch/…, hfds/…; frames, cifar10dvs; else a folder"
    )
    add("--train-split", metavar="NAME", default="train")
    add("--val-split", metavar="NAME", default="validation")
    add("--dataset-download", help="let torch/… and hfds/… data be downloaded", **flag)
    add("--class-map", metavar="FILE", default="", help="class to label mapping")
    add("--input-size", nargs=3, type=int, metavar="N", help="channels, height, width (default: the model's)")
    add("--crop-pct", type=float, metavar="P", help="centre crop for validation")
    add("--mean", type=float, nargs="+", metavar="M", help="of the pixels, in [0, 1] (default: the model's)")
    add("--std", type=float, nargs="+", metavar="S")
    add("--interpolation", default="", help="for resizing (default: the model's)")
    add("--event-steps", type=int, metavar="T", help="frames of a cifar10dvs recording (default: the model's steps)")
    add("-j", "--workers", type=int, default=WORKERS, metavar="N", help="data loading processes (here: %(default)s)")

    add = parser.add_argument_group("student").add_argument
    add("--model", default="snn_resnet18_t4", help="any zoo model, or timm's (default: %(default)s)")
    add("--pretrained", help="start from the model's pretrained weights", **flag)
    add("--initial-checkpoint", metavar="FILE", help="start from these weights")
    add("--num-classes", type=int, metavar="N", help="(default: the model's)")
    add("--in-chans", type=int, metavar="N")
    add("--drop", type=float, metavar="P", help="dropout before the classifier")
    add("--num-steps", type=int, metavar="T", help="time steps (default: the model's)")
    add("--grad-method", choices=("rate", "bptt"), help="rate-based backpropagation, or through time")
    add("--reset", choices=("soft", "hard"), help="of the neuron")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="e.g. decay=0.5 threshold=1")
    add("--quant", choices=("loihi",), help="fine-tune a trained model with the 8-bit weights of Loihi 2")
    add("--channels-last", help="memory layout, often faster", **flag)
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the training forward")
    add("--torchcompile-mode", metavar="MODE", help="torch.compile's: reduce-overhead, max-autotune, …")
    add("--grad-checkpointing", help="through time, and ANNs: less memory, more time", **flag)

    add = parser.add_argument_group("teacher (arXiv 2503.16572)").add_argument
    add("--teacher", metavar="MODEL", help="any timm model, or hf-hub:…; none: labels alone")
    add("--teacher-checkpoint", metavar="FILE", help="its weights (default: its pretrained ones)")
    add("--branches", default="main", help="main, all, none (logits only), or e.g. stem,1,2,fc")
    add("--alpha", type=float, default=0.5, help="weight of the teacher against the labels")
    add(
        "--alpha-schedule", choices=ALPHA_SCHEDULES, default="fixed", help="over the run; rising from 0, falling from 1"
    )
    add("--beta", choices=BETAS, default="uniform", help="weights of the branches")

    add = parser.add_argument_group("optimisation").add_argument
    add("-b", "--batch-size", type=int, default=128, metavar="N")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="batches for one optimizer step")
    add("--loss-grad-scale", type=float, default=1.0, metavar="S", help="of the gradient; RateBP's code has 1/T")
    add("-vb", "--validation-batch-size", type=int, metavar="N")
    add("--epochs", type=int, default=300, metavar="N")
    add("--opt", default="momentum", help="any of timm's; momentum is SGD without Nesterov, sgd with")
    add("--opt-eps", type=float)
    add("--opt-betas", type=float, nargs="+")
    add("--momentum", type=float, default=0.9)
    add("--weight-decay", type=float, default=5e-4, help="none on biases and norms")
    add("--clip-grad", type=float, metavar="NORM")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"))
    add("--lr", type=float, default=0.1)
    add("--sched", default="cosine", help="any of timm's")
    add("--min-lr", type=float, default=0.0)
    add("--warmup-lr", type=float, default=1e-5)
    add("--warmup-epochs", type=int, default=0, metavar="N")
    add("--cooldown-epochs", type=int, default=0, metavar="N")
    add("--decay-epochs", type=float, metavar="N", help="(default: the schedule's)")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], metavar="N")
    add("--decay-rate", type=float, default=0.1)
    add("--patience-epochs", type=int, default=10, metavar="N")
    add("--smoothing", type=float, default=0.0, help="label smoothing")
    add("--model-ema", help="average the weights over time", **flag)
    add("--model-ema-decay", type=float, default=0.9998)
    add("--model-ema-warmup", help="a smaller decay to begin with", **flag)
    add("--amp", help="mixed precision; membranes and losses stay float32", **flag)
    add("--amp-dtype", default="bfloat16", choices=("bfloat16", "float16"))
    add("--sync-bn", help="under torchrun: batch norm over all processes", **flag)
    add("--dist-bn", default="reduce", choices=("reduce", "broadcast"), help="running statistics after an epoch")

    add = parser.add_argument_group("augmentation").add_argument
    add("--no-aug", **flag)
    add("--crop-padding", type=int, metavar="N", help="small images: random crop after padding by N pixels")
    add("--cutout", type=int, default=0, metavar="N", help="with --crop-padding: a square of N pixels filled")
    add("--aa", metavar="NAME", help="AutoAugment: timm's policies; cifar10 or svhn with --crop-padding")
    add("--hflip", type=float, default=0.5)
    add("--vflip", type=float, default=0.0)
    add("--color-jitter", type=float, default=0.4)
    add("--scale", type=float, nargs=2, default=[0.08, 1.0], help="of the random resized crop")
    add("--ratio", type=float, nargs=2, default=[3 / 4, 4 / 3])
    add("--reprob", type=float, default=0.0, help="random erasing")
    add("--remode", default="pixel", choices=("pixel", "rand", "const"), help="what is put in its place")
    add("--train-interpolation", default="random", choices=INTERPOLATIONS)
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="mixed labels; the teacher sees the mixed images")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA")
    add("--mixup-prob", type=float, default=1.0)
    add("--mixup-switch-prob", type=float, default=0.5, help="of cutmix where both are on")
    add("--roll", type=int, default=0, metavar="N", help="frames: rolled by up to N pixels")

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=42)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output", default="output/train", metavar="DIR", help="where runs go")
    add("--experiment", default="", metavar="NAME", help="the run's folder in it (default: date and model)")
    add("--resume", metavar="WHAT", help="a checkpoint, a run's folder, or auto: --experiment's if it has begun")
    add("--recovery-interval", type=int, default=0, metavar="N", help="optimizer steps between saves in an epoch")
    add("--checkpoint-hist", type=int, default=3, metavar="N", help="epochs' checkpoints to keep, besides the best")
    add("--val-interval", type=int, default=1, metavar="N", help="epochs from one validation to the next")
    add("--eval-metric", default="top1", choices=("top1", "top5", "loss"))
    add("--log-interval", type=int, default=50, metavar="N", help="optimizer steps between log lines")
    add("--log-tensorboard", **flag)
    add("--log-wandb", **flag)
    add("--wandb-project", default="snnzoo", metavar="NAME")
    return parser


# The schedules that an option has a part in.
_OF_SCHEDULES = {
    "decay_epochs": "step wsd rsqrt",
    "decay_milestones": "multistep",
    "decay_rate": "step multistep plateau poly",
    "patience_epochs": "plateau",
    "min_lr": "cosine tanh poly plateau wsd rsqrt",
    "cooldown_epochs": "cosine tanh poly wsd rsqrt",
}

_RANGES = {
    "at least 1": (lambda x: x >= 1, "batch_size validation_batch_size epochs grad_accum_steps checkpoint_hist "
                                     "log_interval val_interval num_classes in_chans event_steps"),
    "at least 0": (lambda x: x >= 0, "workers crop_padding cutout roll mixup cutmix lr min_lr warmup_lr "
                                     "weight_decay warmup_epochs cooldown_epochs patience_epochs recovery_interval "
                                     "color_jitter"),
    "in [0, 2**32)": (lambda x: 0 <= x < 2**32, "seed"),  # numpy's range
    "above 0": (lambda x: x > 0, "decay_epochs clip_grad loss_grad_scale"),
    "in [0, 1]": (lambda x: 0 <= x <= 1, "hflip vflip reprob mixup_prob mixup_switch_prob model_ema_decay"),
    "in [0, 1)": (lambda x: 0 <= x < 1, "drop smoothing momentum"),
}  # fmt: skip


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing beside the others, as far as that is seen here, or that cannot be.

    What a recipe says of augmentation may stay beside ``--no-aug``, and ``--sync-bn`` where there is one process. An
    empty ``--teacher`` takes a recipe's away, with the options that are about it.

    Raises:
        InputError: there is such an option, or one outside its range.
    """
    defaults = vars(make_parser().parse_args([]))

    def idle(because: str, options: str) -> None:
        for option in options.split():
            if getattr(args, option) not in (defaults[option], ""):
                raise InputError(f"--{option.replace('_', '-')} does nothing {because}")

    about_teacher = "teacher_checkpoint branches alpha alpha_schedule beta"
    if args.teacher == "":
        vars(args).update({option: defaults[option] for option in about_teacher.split()})
    elif not args.teacher:
        idle("without --teacher", about_teacher)
    if args.alpha_schedule != "fixed":
        idle("with --alpha-schedule, which goes from 0 to 1 or back", "alpha")
    if args.quant:
        if not (args.pretrained or args.initial_checkpoint):
            raise InputError("--quant fine-tunes a trained model: give --initial-checkpoint or --pretrained")
        idle("with --quant, which leaves batch norm's statistics as they are", "sync_bn dist_bn")
    if not args.model_ema:
        idle("without --model-ema", "model_ema_decay model_ema_warmup")
    if not args.torchcompile:
        idle("without --torchcompile", "torchcompile_mode")
    if not args.amp:
        idle("without --amp", "amp_dtype")
    if not args.log_wandb:
        idle("without --log-wandb", "wandb_project")
    if args.clip_grad is None:
        idle("without --clip-grad", "clip_mode")
    for option, schedules in _OF_SCHEDULES.items():
        if args.sched not in schedules.split():
            idle(f"without --sched {schedules.replace(' ', ', ')}", option)
    if args.sched == "plateau":
        idle("with --sched plateau, which goes by the validation of every epoch", "val_interval")
    if args.sched == "none":
        idle("with --sched none", "warmup_epochs")
    if not args.warmup_epochs:
        idle("without --warmup-epochs", "warmup_lr")
    if not (args.mixup or args.cutmix):
        idle("without --mixup or --cutmix", "mixup_prob mixup_switch_prob")
    if args.dataset != "cifar10dvs":
        idle("without --dataset cifar10dvs", "event_steps")
    if args.dataset == "frames":
        idle("with --dataset frames, which have their own number of steps", "num_steps")
    if args.dataset in FRAME_DATASETS:
        images = "crop_padding cutout aa vflip color_jitter scale ratio reprob remode train_interpolation crop_pct"
        idle("with event frames", f"{images} mixup cutmix interpolation class_map dataset_download")
    else:
        idle("without event frames", "roll")
        if not args.reprob:
            idle("without --reprob", "remode")
        if args.crop_padding is None:
            idle("without --crop-padding; for larger images use --reprob", "cutout")
            if args.aa in AUTO_AUGMENT:
                raise InputError(f"--aa {args.aa} needs --crop-padding; larger images take timm's policies")
        elif not args.no_aug:
            idle("with --crop-padding", "vflip color_jitter scale ratio train_interpolation")
    for text, (fits, options) in _RANGES.items():
        for option in options.split():
            value = getattr(args, option)
            if value is not None and not all(map(fits, value if isinstance(value, list) else [value])):
                raise InputError(f"--{option.replace('_', '-')} must be {text}, got {value}")
    if (args.mixup or args.cutmix) and args.batch_size % 2:
        raise InputError(f"--mixup and --cutmix mix pairs: --batch-size must be even, got {args.batch_size}")
    with as_input_error(f"--opt {args.opt}"):
        optimizer = get_optimizer_info(args.opt.lower().split("_")[-1])  # lookahead_… stands before another's name
    if optimizer.second_order:
        raise InputError(f"--opt {args.opt} needs second derivatives, which are not computed here: choose another")
    if not optimizer.has_eps:
        idle(f"with --opt {args.opt}", "opt_eps")
    if not optimizer.has_momentum:
        idle(f"with --opt {args.opt}", "momentum")
    betas = optimizer.num_betas if optimizer.has_betas else 0
    if args.opt_betas and len(args.opt_betas) != betas:
        raise InputError(f"--opt-betas: --opt {args.opt} takes {betas} numbers, got {args.opt_betas}")


def record_inherited(args: argparse.Namespace, model: nn.Module, plain: nn.Module) -> None:
    """Write into the options what a model has from the weights that it began with.

    A run's options alone make its model again; they would make ``plain``.

    Args:
        args: the options.
        model: made by the options and the weights, which say how their model was made and its images prepared.
        plain: made by the options without the weights.
    """
    asked, made = model_args(plain), model_args(model)
    plain.in_chans = model.in_chans  # so many means and standard deviations may be among the options
    for found, either in ((asked, plain), (made, model)):
        config = data_config(vars(args), either, args.dataset)
        found |= {key: config[key] for key in PREPARED}
    kwargs = dict(args.model_kwargs)
    for key, value in made.items():
        if asked.get(key) != value:
            (vars(args) if key in vars(args) else kwargs)[key] = value
    args.model_kwargs = kwargs
