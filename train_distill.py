#!/usr/bin/env python3
"""Train a spiking network beside a pretrained ANN, in the manner of timm's train.py.

    python train_distill.py --data-dir DIR --model snn_resnet18_t4 --teacher cifar_resnet18 --teacher-checkpoint FILE
    python train_distill.py -c hub_configs/snn_resnet18_t4.c10/recipe.yaml --data-dir DIR --teacher-checkpoint FILE
    torchrun --nproc-per-node 8 train_distill.py -c … --sync-bn --batch-size 64

The method is arXiv 2503.16572: hybrids of student and frozen teacher, trained by rate-based backpropagation. Without
--teacher the model, spiking or not, learns from the labels alone.
"""

import logging
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from timm.data import Mixup, create_transform
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask
from timm.utils import NativeScaler, dispatch_clip_grad, distribute_bn, setup_default_logging, unwrap_model
from tqdm import tqdm

import snnzoo
from snnzoo import data
from snnzoo.allocator import keep_memory
from snnzoo.analysis import save_curves
from snnzoo.checkpoints import BEST, Checkpoints, Progress, Training, judged_by
from snnzoo.compilation import compile_options
from snnzoo.distill import AnnGuidedDistillationTask, create_teacher, scheduled_alpha
from snnzoo.errors import InputError
from snnzoo.evaluate import evaluate, logits_of
from snnzoo.export.lava.finetune import prepare
from snnzoo.interruption import Interruption, Stopped
from snnzoo.meters import Meters, means_of
from snnzoo.options import check_options, make_parser, record_inherited
from snnzoo.processes import Processes
from snnzoo.randomness import host_rng_preserved, seed_all, seed_of
from snnzoo.records import Records, is_finished
from snnzoo.runs import resume, run_dir
from snnzoo.scripting import as_input_error, in_chans, model_kwargs, parse_with_config, run
from snnzoo.sync import OWN_BUFFERS, synchronise
from snnzoo.weights import create_model

_logger = logging.getLogger("train")
CALIBRATION = 64  # images that --quant chooses its scales on


def build_student(args) -> torch.nn.Module:
    make = partial(
        create_model,
        use_ema=None,
        num_classes=args.num_classes,
        in_chans=in_chans(args),
        drop_rate=args.drop,
        num_steps=args.num_steps,
        grad_method=args.grad_method,
        reset=args.reset,
        **model_kwargs(args),
    )
    model = make(args.model, checkpoint=args.initial_checkpoint, pretrained=args.pretrained)
    if args.initial_checkpoint or args.pretrained or ":" in args.model:
        with host_rng_preserved():  # a name with a source, hf-hub:… or local-dir:…, brings arguments of its own
            record_inherited(
                args, model, make(model.pretrained_cfg["architecture"] if ":" in args.model else args.model)
            )
    if args.grad_checkpointing:
        if getattr(model, "grad_method", None) == "rate":
            raise InputError("--grad-checkpointing does nothing for rate-based backpropagation: it keeps no steps to "
                             "save on; --grad-method bptt does")  # fmt: skip
        model.set_grad_checkpointing()
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def build_data(args, model, processes):
    """Training batches, validation batches, and what tells the data from others; the model learns its config."""
    frames = args.dataset in data.FRAME_DATASETS
    config = data.data_config(vars(args), model, args.dataset)
    model.pretrained_cfg.update(config)
    size, steps = config["input_size"][1:], getattr(model, "num_steps", None)
    open_split = partial(
        data.open_dataset, args.dataset, args.data_dir, num_classes=model.num_classes, in_chans=model.in_chans,
        num_steps=args.event_steps or steps, size=size, class_map=args.class_map, download=args.dataset_download,
        seed=args.seed, batch_size=args.batch_size,
    )  # fmt: skip
    train, val = open_split(args.train_split, is_training=True), open_split(args.val_split, is_training=False)
    data.check_splits(train, val)
    facts = {"data": {"train": data.fingerprint(train), "validation": data.fingerprint(val)}}

    if frames:
        active = {} if args.no_aug else dict(hflip=args.hflip, roll=args.roll)
        train.transform = data.FrameTransform(**active, time_mean=steps is None)
        val.transform = data.FrameTransform(time_mean=steps is None)
    else:
        with as_input_error("--interpolation or --crop-pct"):
            val.transform = create_transform(is_training=False, use_prefetcher=True, **config)
        if args.crop_padding is not None and not args.no_aug:
            train.transform = data.SmallImageTransform(
                size, args.crop_padding, args.hflip, args.aa, args.cutout, config["mean"]
            )
        else:
            with as_input_error(f"--aa {args.aa}, or another option of the augmentation,"):
                train.transform = create_transform(
                    config["input_size"], is_training=True, no_aug=args.no_aug, scale=args.scale, ratio=args.ratio,
                    hflip=args.hflip, vflip=args.vflip, color_jitter=args.color_jitter, auto_augment=args.aa,
                    interpolation=args.train_interpolation, mean=config["mean"], std=config["std"],
                    use_prefetcher=True,
                )  # fmt: skip
    shared = dict(num_classes=model.num_classes, processes=processes, workers=args.workers, frames=frames,
                  mean=config["mean"], std=config["std"])  # fmt: skip
    erasing = dict(re_prob=0.0 if args.no_aug else args.reprob, re_mode=args.remode)
    batches = data.TrainingBatches(train, args.batch_size, seed=args.seed, **shared, **erasing)
    return batches, data.evaluation_batches(val, args.validation_batch_size or args.batch_size, **shared), facts


def build_task(args, model, processes):
    """The model with its loss; teacher and adapters if there is a teacher."""
    loss = create_classification_loss(smoothing=args.smoothing, soft_targets=args.mixup > 0 or args.cutmix > 0)

    def criterion(logits, target):
        return loss(logits.float(), target)

    if not args.teacher:
        task = ClassificationTask(model, criterion, device=processes.device, verbose=False)
    else:
        teacher = create_teacher(args.teacher, model.num_classes, model.in_chans, args.teacher_checkpoint)
        if args.dataset in data.FRAME_DATASETS:  # counts of events: nobody's weights know a scale of their own
            teacher.pretrained_cfg.update({key: model.pretrained_cfg[key] for key in ("mean", "std")})
        if args.channels_last:
            teacher.to(memory_format=torch.channels_last)
        task = AnnGuidedDistillationTask(
            model, teacher, criterion, branches=args.branches.split(","), alpha=args.alpha, beta=args.beta,
            input_size=model.pretrained_cfg["input_size"], device=processes.device,
        )  # fmt: skip
    if args.sync_bn and processes.together:
        synchronise(task.get_trainable_module())
    return task.to(processes.device)


def build_training(args, arch, task, facts, steps, processes) -> tuple[Training, int]:
    """What moves the weights: optimizer, scheduler, scaler; and the number of epochs with the cooldown."""
    with as_input_error(f"--opt {args.opt}"):
        optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args))
    updates = -(-steps // args.grad_accum_steps)
    with as_input_error(f"--sched {args.sched}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PlateauLRScheduler is deprecated", FutureWarning)  # ours is saved
        scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
    if args.torchcompile:
        with as_input_error(f"--torchcompile {args.torchcompile} or its --torchcompile-mode"):
            dtype = getattr(torch, args.amp_dtype) if args.amp else torch.float32
            options = compile_options(args.torchcompile, args.torchcompile_mode, processes.device.type, dtype)
            task.compile(backend=args.torchcompile, **options)
    if processes.together:
        ids = [processes.device] if processes.device.type == "cuda" else None
        task.prepare_distributed(device_ids=ids, **OWN_BUFFERS)
    scaler = NativeScaler(processes.device.type) if args.amp and args.amp_dtype == "float16" else None
    return Training(task, optimizer, scheduler, scaler, vars(args), arch, facts["data"]["train"]), epochs


def train_one_epoch(args, training, batches, forward, processes, progress, meters, pause) -> None:
    """From where the progress is to the epoch's end; ``pause`` is called after every optimizer step."""
    task, optimizer, scaler = training.task.train(), training.optimizer, training.scaler
    left, done = batches.left(progress.samples), 0
    begun, shown = time.perf_counter(), progress.totals
    bar = tqdm(
        desc=f"epoch {progress.epoch}", total=batches.steps * batches.step_size, initial=progress.samples, unit="img",
        disable=not processes.is_first or None, leave=False,
    )  # fmt: skip
    with bar:
        for images, target in batches.epoch(progress.epoch, progress.samples):
            if args.channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            # the last step of an epoch may have fewer batches than the others
            group = min(args.grad_accum_steps, left - done // args.grad_accum_steps * args.grad_accum_steps)
            done += 1
            completes = done % args.grad_accum_steps == 0 or done == left
            with nullcontext() if completes else task.no_sync():
                result = forward(images, target)
                loss = result["loss"] * (args.loss_grad_scale / group)
                clip = dict(clip_mode=args.clip_mode, parameters=task.get_clip_parameters(args.clip_mode == "agc"))
                if scaler is not None:
                    scaler(loss, optimizer, clip_grad=args.clip_grad, need_update=completes, **clip)
                else:
                    loss.backward()
            parts = {key: value for key, value in result.items() if value.ndim == 0}
            parts["top1"] = 100 * (result["output"].argmax(1) == target).float().mean()
            meters.update(parts, len(target))
            progress.samples += batches.step_size
            bar.update(batches.step_size)
            if not completes:
                continue
            if scaler is None:
                if args.clip_grad is not None:
                    dispatch_clip_grad(clip["parameters"], args.clip_grad, mode=args.clip_mode)
                optimizer.step()
            optimizer.zero_grad()
            progress.updates += 1
            task.update_ema(progress.updates)
            if training.scheduler:
                training.scheduler.step_update(progress.updates)
            if progress.updates % args.log_interval == 0:
                totals = meters.totals()
                means, shown = means_of(totals, since=shown), totals
                speed = done * batches.step_size / (time.perf_counter() - begun)
                bar.set_postfix(loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}")
                if bar.disable and processes.is_first:
                    _logger.info(
                        f"epoch {progress.epoch} [{batches.steps - left + done}/{batches.steps}] loss "
                        f"{means['loss']:.6f} top1 {means['top1']:.2f} {speed:.0f} img/s ETA "
                        f"{(left - done) * batches.step_size / speed:.0f} s"
                    )
            pause()


def validate(args, task, batches, processes, autocast, after_batch) -> dict[str, float]:
    """The student, its hybrids, its firing rates, and the averaged weights if there are any."""
    task.eval()
    inspects = isinstance(task, AnnGuidedDistillationTask)
    model = unwrap_model(task.get_eval_model())
    how = dict(processes=processes, autocast=autocast, channels_last=args.channels_last, after_batch=after_batch)
    spiking = model if hasattr(model, "num_steps") else None
    val = evaluate(task.inspect if inspects else partial(logits_of, model), batches, spiking=spiking, **how)
    if task.has_ema():
        averaged = evaluate(partial(logits_of, unwrap_model(task.get_eval_model(ema=True))), batches, **how)
        val |= {f"ema_{key}": averaged[key] for key in ("loss", "top1", "top5")}
    return val


def fit(args, training, batches, val_batches, processes, progress, checkpoints, records, epochs) -> None:
    """Epoch after epoch: train, validate, record, save."""
    task, mixup, autocast = training.task, None, nullcontext
    if args.mixup or args.cutmix:
        mixup = Mixup(args.mixup, args.cutmix, prob=args.mixup_prob, switch_prob=args.mixup_switch_prob,
                      label_smoothing=args.smoothing, num_classes=val_batches.dataset.num_classes)  # fmt: skip
    if args.amp:
        autocast = partial(torch.autocast, processes.device.type, dtype=getattr(torch, args.amp_dtype))

    def forward(images, target):
        if mixup:
            images, target = mixup(images, target)
        with autocast():
            return task(images, target)

    def pause():
        if args.recovery_interval and progress.updates % args.recovery_interval == 0:
            progress.totals = meters.totals()
            checkpoints.save(progress)
        interruption.check()

    with Interruption(processes) as interruption:
        while progress.epoch < epochs:
            epoch, begun, before = progress.epoch, time.perf_counter(), progress.samples
            if not progress.samples:  # an epoch is the same in a run that was resumed
                seed_all(seed_of(args.seed, epoch, processes.rank))
            if isinstance(task, AnnGuidedDistillationTask):
                task.alpha = scheduled_alpha(args.alpha_schedule, args.alpha, epoch, epochs)
            meters = Meters(processes, progress.totals)
            try:
                train_one_epoch(args, training, batches, forward, processes, progress, meters, pause)
                train = means_of(meters.totals())
                train["images_per_s"] = (progress.samples - before) / (time.perf_counter() - begun)
                if processes.together and not args.sync_bn:
                    for module in filter(None, (task.get_trainable_module(), task.get_trainable_module(ema=True))):
                        distribute_bn(module, processes.count, args.dist_bn == "reduce")
                val = {}
                if (epoch + 1) % args.val_interval == 0 or epoch + 1 == epochs:
                    val = validate(args, task, val_batches, processes, autocast, interruption.check)
            except Stopped:
                progress.totals = meters.totals()
                checkpoints.save(progress)
                raise
            metric = val.get(judged_by(vars(args)))
            if val:
                progress.judge(metric, decreasing=args.eval_metric == "loss")
            row = {"epoch": epoch} | {f"train_{key}": value for key, value in train.items()}
            row |= {f"eval_{key}": value for key, value in val.items()}
            row["lr"] = training.optimizer.param_groups[0]["lr"]
            if records:
                records.epoch(row)
            if training.scheduler:
                training.scheduler.step(epoch + 1, metric)
            progress.next_epoch()
            checkpoints.save_epoch(progress, epoch)
            found = f" | val loss {val['loss']:.4f} top1 {val['top1']:.2f}" if val else ""
            found += "".join(f" hybrid {key[5:]} {value:.2f}" for key, value in val.items() if key[:5] == "top1_")
            _logger.info(
                f"epoch {epoch}: train loss {train['loss']:.4f} top1 {train['top1']:.2f} {train['images_per_s']:.0f} "
                f"img/s{found} | lr {row['lr']:.4f}"
            )


def save_picture(folder: Path, records: Records) -> None:
    """The curves in the run's folder, where they can be drawn."""
    try:
        save_curves(folder, records.rows)
    except InputError as error:
        _logger.info(f"no picture of the curves: {error}")


def main(argv: list[str] | None = None) -> None:
    args = parse_with_config(make_parser(__doc__), argv)
    check_options(args)
    processes = Processes(args.device)
    if processes.device.type == "cpu":
        keep_memory()
    seed_all(args.seed)
    model = build_student(args)
    batches, val_batches, facts = build_data(args, model, processes)
    if args.quant:
        prepare(model, processes.from_first(batches.first()[:CALIBRATION].cpu()))
    task = build_task(args, model, processes)
    if isinstance(task, AnnGuidedDistillationTask):
        task.begin(batches.first())
    arch = model.pretrained_cfg["architecture"]
    training, epochs = build_training(args, arch, task, facts, batches.steps, processes)
    facts |= {"parameters": sum(p.numel() for p in model.parameters()), "processes": processes.count}
    with run_dir(args, processes) as folder:
        train(args, training, batches, val_batches, facts, processes, folder, epochs)


def train(args, training, batches, val_batches, facts, processes, folder, epochs) -> None:
    """From the run's beginning, or where it was interrupted, to its end or next interruption."""
    if processes.is_first:
        setup_default_logging(log_path=str(folder / "train.log"))
    progress = resume(args, folder, training, processes, epochs) if args.resume else Progress()
    if progress.epoch >= epochs and processes.from_first(is_finished(folder)):
        return _logger.info(f"{folder} has all of {epochs} epochs")
    checkpoints = Checkpoints(folder, args.checkpoint_hist, training, processes)
    records = Records(folder, args, facts, progress) if processes.is_first else None
    _logger.info(
        f"{args.model}: {facts['parameters'] / 1e6:.2f} M parameters, teacher {args.teacher}, "
        f"{processes.count} process(es), snnzoo {snnzoo.__version__}, {folder}"
    )

    finished = False
    try:
        fit(args, training, batches, val_batches, processes, progress, checkpoints, records, epochs)
        if records:
            save_picture(folder, records)
        finished = True
    except Stopped as stopped:
        _logger.info(f"{stopped} in epoch {progress.epoch}; go on with --resume {folder}")
        processes.close()
        raise SystemExit(128 + stopped.signum) from None
    finally:
        if records:
            records.close(finished)
    if progress.best_epoch is not None:
        best = f"best {judged_by(vars(args))} {progress.best_metric:.2f} in epoch {progress.best_epoch}"
        _logger.info(f"{best}: {folder / BEST}")
    processes.close()


if __name__ == "__main__":
    run(main, Path(__file__).name)
