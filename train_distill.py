#!/usr/bin/env python3
"""Train a spiking network beside a pretrained ANN, in the manner of timm's train.py.

    python train_distill.py --data-dir DIR --model snn_resnet18_t4 --teacher resnet18 [options]
    python train_distill.py -c hub_configs/snn_resnet20_t4.c10/recipe.yaml --data-dir DIR

The method is arXiv 2503.16572: hybrids of student and frozen teacher, trained by rate-based backpropagation. Without
--teacher the model, spiking or not, learns from the labels alone.
"""

import argparse
import logging
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import yaml
from timm.data import create_loader, resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask
from timm.utils import (
    AverageMeter,
    NativeScaler,
    ParseKwargs,
    accuracy,
    dispatch_clip_grad,
    random_seed,
    setup_default_logging,
    trim_summary,
    update_summary,
)
from tqdm import tqdm

import snnzoo
from snnzoo.data import AUTO_AUGMENT, SmallImageTransform, check_splits, open_dataset
from snnzoo.distill import ALPHA_SCHEDULES, BETAS, AnnGuidedDistillationTask, create_teacher, scheduled_alpha
from snnzoo.errors import InputError
from snnzoo.evaluate import evaluate, logits_of
from snnzoo.files import write_atomically
from snnzoo.runs import Saver, open_run_dir, resume
from snnzoo.scripting import as_input_error, model_kwargs, open_device, parse_with_config, run
from snnzoo.weights import create_model

_logger = logging.getLogger("train")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flag = dict(action="store_true", default=False)

    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="root of the data")
    add("--dataset", metavar="NAME", default="", help="timm's names: torch/…, hfds/…; a folder or tar if empty")
    add("--train-split", metavar="NAME", default="train")
    add("--val-split", metavar="NAME", default="validation")
    add("--dataset-download", help="let torch/… and hfds/… data be downloaded", **flag)
    add("--class-map", metavar="FILE", default="", help="class to label mapping")
    add("--input-size", nargs=3, type=int, metavar="N", help="channels, height, width (default: the model's)")
    add("--crop-pct", type=float, metavar="P", help="centre crop for validation")
    add("--mean", type=float, nargs="+", metavar="M", help="of the pixels, in [0, 1] (default: the model's)")
    add("--std", type=float, nargs="+", metavar="S")
    add("--interpolation", default="", help="for resizing (default: the model's)")
    add("-j", "--workers", type=int, default=4, metavar="N", help="data loading processes")

    add = parser.add_argument_group("student").add_argument
    add("--model", default="snn_resnet18_t4", help="any zoo model, any timm model without --branches")
    add("--pretrained", help="start from the model's pretrained weights", **flag)
    add("--initial-checkpoint", metavar="FILE", help="start from these weights")
    add("--num-classes", type=int, metavar="N", help="(default: the model's)")
    add("--in-chans", type=int, metavar="N")
    add("--drop", type=float, metavar="P", help="dropout before the classifier")
    add("--num-steps", type=int, metavar="T", help="time steps (default: the model's)")
    add("--grad-method", choices=("rate", "bptt"), help="rate-based backpropagation, or through time")
    add("--reset", choices=("soft", "hard"), help="of the neuron")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="e.g. decay=0.5 threshold=1")
    add("--channels-last", help="memory layout, often faster", **flag)
    add("--grad-checkpointing", help="with --grad-method bptt: less memory, more time", **flag)

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
    add("--amp", help="mixed precision; membranes and losses stay float32", **flag)
    add("--amp-dtype", default="bfloat16", choices=("bfloat16", "float16"))

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
    add("--remode", default="pixel")
    add("--train-interpolation", default="random")

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=42)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output", default="output/train", metavar="DIR", help="where runs go")
    add("--experiment", default="", metavar="NAME", help="the run's folder in it (default: date and model)")
    add("--resume", metavar="FILE", help="go on from this checkpoint, in its folder")
    add("--checkpoint-hist", type=int, default=3, metavar="N", help="best checkpoints to keep")
    add("--eval-metric", default="top1", choices=("top1", "top5", "loss"))
    add("--log-interval", type=int, default=50, metavar="N", help="batches between log lines where no bar is shown")
    return parser


def check_options(args) -> None:
    """Refuse options that would do nothing beside the others."""
    defaults = vars(make_parser().parse_args([]))

    def idle(because: str, *options: str) -> None:
        for option in options:
            if getattr(args, option) != defaults[option]:
                raise InputError(f"--{option.replace('_', '-')} does nothing {because}")

    if not args.teacher:
        idle("without --teacher", "teacher_checkpoint", "branches", "alpha", "alpha_schedule", "beta")
    if args.grad_method != "bptt":
        idle("without --grad-method bptt: rate-based backpropagation keeps no steps to save on", "grad_checkpointing")
    if args.no_aug:
        return
    if args.crop_padding is None:
        idle("without --crop-padding; for larger images use --reprob", "cutout")
        if args.aa in AUTO_AUGMENT:
            raise InputError(f"--aa {args.aa} needs --crop-padding; larger images take timm's policies")
    else:
        idle("with --crop-padding", "vflip", "color_jitter", "scale", "ratio", "train_interpolation")


def build_student(args) -> torch.nn.Module:
    model = create_model(
        args.model,
        args.initial_checkpoint,
        pretrained=args.pretrained,
        num_classes=args.num_classes,
        in_chans=args.in_chans or (args.input_size and args.input_size[0]),
        drop_rate=args.drop,
        num_steps=args.num_steps,
        grad_method=args.grad_method,
        reset=args.reset,
        **model_kwargs(args),
    )
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def build_loaders(args, model, device):
    """Training and validation loaders; the model's config is told how its images are normalised."""
    with as_input_error("--input-size, --mean or --std"):
        config = resolve_data_config(vars(args), model=model)
    config["input_size"] = (model.in_chans, *config["input_size"][1:])
    model.pretrained_cfg.update(config)

    open_split = partial(
        open_dataset, args.dataset, args.data_dir, num_classes=model.num_classes, class_map=args.class_map,
        download=args.dataset_download, seed=args.seed, input_img_mode="L" if model.in_chans == 1 else "RGB",
    )  # fmt: skip
    train = open_split(args.train_split, is_training=True, batch_size=args.batch_size)
    val_batch = args.validation_batch_size or args.batch_size
    val = open_split(args.val_split, is_training=False, batch_size=val_batch)
    check_splits(train, val)

    # Workers start anew each epoch, so that an epoch depends on its seed and not on the epochs before it.
    shared = dict(num_workers=args.workers, device=device, persistent_workers=False, pin_memory=device.type == "cuda")
    loader = create_loader(
        train, batch_size=args.batch_size, is_training=True, no_aug=args.no_aug, re_prob=args.reprob,
        re_mode=args.remode, scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
        color_jitter=args.color_jitter, auto_augment=None if args.crop_padding is not None else args.aa,
        interpolation=args.train_interpolation, input_size=config["input_size"], mean=config["mean"],
        std=config["std"], **shared,
    )  # fmt: skip
    if args.crop_padding is not None and not args.no_aug:
        size, mean = config["input_size"][1:], config["mean"][: model.in_chans]
        train.transform = SmallImageTransform(size, args.crop_padding, args.hflip, args.aa, args.cutout, mean)
    if not len(loader):
        raise InputError(f"the training data has fewer images ({len(train)}) than a batch ({args.batch_size})")
    return loader, create_loader(val, batch_size=val_batch, is_training=False, **config, **shared)


def build_task(args, model, device):
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    if not args.teacher:
        return ClassificationTask(model, criterion, device=device, verbose=False).to(device)
    teacher = create_teacher(args.teacher, model.num_classes, model.in_chans, args.teacher_checkpoint)
    if args.channels_last:
        teacher.to(memory_format=torch.channels_last)
    task = AnnGuidedDistillationTask(
        model,
        teacher,
        criterion,
        branches=args.branches.split(","),
        alpha=args.alpha,
        beta=args.beta,
        input_size=model.pretrained_cfg["input_size"],
        device=device,
    )
    return task.to(device)


def train_one_epoch(epoch, args, task, loader, optimizer, scheduler, scaler, autocast) -> dict[str, float]:
    task.train()
    meters: dict[str, AverageMeter] = {}
    start, seen = time.perf_counter(), 0
    with tqdm(desc=f"epoch {epoch}", total=len(loader) * args.batch_size, unit="img", disable=None, leave=False) as bar:
        for step, (images, target) in enumerate(loader):
            if args.channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast():
                result = task(images, target)
            optimizer.zero_grad()
            clip = dict(clip_mode=args.clip_mode, parameters=task.get_clip_parameters(args.clip_mode == "agc"))
            if scaler is not None:
                scaler(result["loss"], optimizer, clip_grad=args.clip_grad, **clip)
            else:
                result["loss"].backward()
                if args.clip_grad is not None:
                    dispatch_clip_grad(clip["parameters"], args.clip_grad, mode=args.clip_mode)
                optimizer.step()
            task.update_ema(epoch * len(loader) + step)
            if scheduler:
                scheduler.step_update(epoch * len(loader) + step + 1)

            parts = {key: value.item() for key, value in result.items() if value.ndim == 0}
            parts["top1"] = accuracy(result["output"].detach(), target)[0].item()
            for key, value in parts.items():
                meters.setdefault(key, AverageMeter()).update(value, len(images))
            seen += len(images)
            bar.update(len(images))
            bar.set_postfix(loss=f"{meters['loss'].avg:.3f}", top1=f"{meters['top1'].avg:.1f}")
            if bar.disable and (step + 1) % args.log_interval == 0:
                speed = seen / (time.perf_counter() - start)
                _logger.info(
                    f"epoch {epoch} [{step + 1}/{len(loader)}] loss {meters['loss'].avg:.4f} "
                    f"top1 {meters['top1'].avg:.2f} {speed:.0f} img/s "
                    f"ETA {(len(loader) - step - 1) * args.batch_size / speed:.0f} s"
                )
    return {key: meter.avg for key, meter in meters.items()} | {"images_per_s": seen / (time.perf_counter() - start)}


def main(argv: list[str] | None = None) -> None:
    args = parse_with_config(make_parser(), argv)
    check_options(args)
    device = open_device(args.device)
    random_seed(args.seed)
    model = build_student(args)
    train_loader, val_loader = build_loaders(args, model, device)
    task = build_task(args, model, device)
    with as_input_error(f"--opt {args.opt}"):
        optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args))
    scaler = NativeScaler(device.type) if args.amp and args.amp_dtype == "float16" else None
    autocast = nullcontext
    if args.amp:
        autocast = partial(torch.autocast, device.type, dtype=getattr(torch, args.amp_dtype))
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay)
    with as_input_error(f"--sched {args.sched}"):
        scheduler, epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args), updates_per_epoch=len(train_loader)
        )
    folder = open_run_dir(args)
    saver = Saver(
        vars(args), model=model, optimizer=optimizer, amp_scaler=scaler, checkpoint_dir=str(folder),
        decreasing=args.eval_metric == "loss", max_history=args.checkpoint_hist, task=task,
    )  # fmt: skip
    start_epoch = resume(args, task, optimizer, scaler, saver, folder) if args.resume else 0
    if start_epoch >= epochs:
        raise InputError(f"nothing to do: {args.resume!r} has all of {epochs} epochs; set --epochs higher")
    if start_epoch and scheduler:
        scheduler.step(start_epoch)

    setup_default_logging(log_path=str(folder / "train.log"))
    logging.getLogger("timm").setLevel(logging.WARNING)  # the saver would list its files after every epoch
    write_atomically(folder / "args.yaml", yaml.safe_dump(vars(args)))
    summary = folder / "summary.csv"
    trim_summary(str(summary), start_epoch)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    _logger.info(
        f"{args.model}: {size:.2f} M parameters, teacher {args.teacher}, snnzoo {snnzoo.__version__}, {folder}"
    )

    inspects = isinstance(task, AnnGuidedDistillationTask)
    for epoch in range(start_epoch, epochs):
        random_seed((args.seed + 1_000_003 * epoch) % 2**32)  # an epoch is the same in a run that was resumed
        if hasattr(train_loader.dataset, "set_epoch"):
            train_loader.dataset.set_epoch(epoch)
        if inspects:
            task.alpha = scheduled_alpha(args.alpha_schedule, args.alpha, epoch, epochs)
        train = train_one_epoch(epoch, args, task, train_loader, optimizer, scheduler, scaler, autocast)
        task.eval()
        how = (val_loader, device, autocast, args.channels_last)
        val = evaluate(task.inspect if inspects else partial(logits_of, task.get_eval_model()), *how)
        if task.has_ema():
            averaged = evaluate(partial(logits_of, task.get_eval_model(ema=True)), *how)
            val |= {f"ema_{key}": averaged[key] for key in ("loss", "top1", "top5")}
        metric = val[("ema_" if task.has_ema() else "") + args.eval_metric]
        lr = optimizer.param_groups[0]["lr"]
        update_summary(epoch, train, val, str(summary), lr=lr)
        best, best_epoch = saver.save_checkpoint(epoch, metric)
        if scheduler:
            scheduler.step(epoch + 1, metric)
        hybrids = "".join(f" hybrid {key[5:]} {value:.2f}" for key, value in val.items() if key.startswith("top1_"))
        _logger.info(
            f"epoch {epoch}: train loss {train['loss']:.4f} top1 {train['top1']:.2f} {train['images_per_s']:.0f} img/s "
            f"| val loss {val['loss']:.4f} top1 {val['top1']:.2f}{hybrids} | lr {lr:.4f}"
        )
    _logger.info(f"best {args.eval_metric} {best:.2f} in epoch {best_epoch}: {folder / 'model_best.pth.tar'}")


if __name__ == "__main__":
    run(main, Path(__file__).name)
