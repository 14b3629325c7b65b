"""Recordings of event cameras: reading, counting, splitting, caching, and training from them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from running import load, refuse, rows
from torchvision.transforms.functional import resize

import train_distill
import validate
from benchmarks import synthetic_dvs
from snnzoo import InputError, hub
from snnzoo.data import Cifar10DVS, FrameFolder, FrameTransform, check_splits
from snnzoo.data.events import _SPLIT_FILE, count_events, read_events

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two training and one test recording of each class, of a moving bright square; synthetic, as the name says."""
    pytest.importorskip("tonic")
    folder = tmp_path_factory.mktemp("synthetic_dvs")
    for label, name in enumerate(NAMES):
        for number in range(3):
            pixels = np.full((32, 32), 40, np.uint8)
            pixels[2 * label : 2 * label + 10, 5 + 3 * number : 20 + 3 * number] = 220
            path = folder / "images/train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    synthetic_dvs.write_synthetic_dvs(folder / "images", folder / "dvs", train=2, test=1)
    return folder / "dvs"


def test_the_committed_split():
    split = json.loads(_SPLIT_FILE.read_text())["test"]
    assert list(split) == NAMES
    assert all(len(set(numbers)) == 100 and min(numbers) >= 0 and max(numbers) < 1000 for numbers in split.values())


def test_events_are_read_as_they_were_written(tmp_path):
    pytest.importorskip("tonic")
    rng = np.random.default_rng(0)
    count = 5000
    values = [np.sort(rng.integers(10**6, size=count)), *(rng.integers(128, size=count) for _ in "xy"),
              rng.integers(2, size=count)]  # fmt: skip
    synthetic_dvs.write_aedat(tmp_path / "r_0.aedat", np.rec.fromarrays(values, names="t,x,y,p"))
    events = read_events(tmp_path / "r_0.aedat")
    for name, value in zip("txyp", values, strict=True):
        assert np.array_equal(events[name], value), name
    (tmp_path / "torn_0.aedat").write_bytes(b"")
    with pytest.raises(InputError, match="torn_0.aedat' cannot be read.*: its first line is not #!AER-DAT2.0"):
        read_events(tmp_path / "torn_0.aedat")


def test_aedat4_is_refused_when_damaged(tmp_path):
    pytest.importorskip("tonic")
    pytest.importorskip("aedat")
    (tmp_path / "r_0.aedat4").write_bytes(b"#!AER-DAT4.0\r\nnonsense")
    with pytest.raises(InputError, match="r_0.aedat4' cannot be read"):
        read_events(tmp_path / "r_0.aedat4")


def test_frames_hold_equally_many_events():
    """Against tonic's own frames of event counts, up to the events that it drops at the end."""
    transforms = pytest.importorskip("tonic.transforms")
    from tonic.io import make_structured_array

    rng = np.random.default_rng(0)
    count = 4 * 997
    x, y, p = rng.integers(128, size=count), rng.integers(128, size=count), rng.integers(2, size=count)
    events = make_structured_array(x, y, np.arange(count), p)
    frames = count_events(events, 4)
    assert frames.shape == (4, 2, 128, 128) and frames.sum((1, 2, 3)).tolist() == [997] * 4
    theirs = transforms.ToFrame((128, 128, 2), n_event_bins=4)(events)
    assert torch.equal(frames, torch.from_numpy(np.asarray(theirs)).float())
    assert count_events(events[:0], 2).sum() == 0


def test_cifar10dvs_splits_and_keeps_its_frames(recordings):
    train, test = (Cifar10DVS(recordings, split, 4, (48, 48)) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 10)
    names = [{path for path, _ in dataset.samples} for dataset in (train, test)]
    assert not names[0] & names[1]
    frames, label = train[5]
    kept = recordings / "frames-T4-48x48" / train.samples[5][0].parent.name / f"{train.samples[5][0].stem}.npz"
    assert kept.exists() and frames.shape == (4, 2, 48, 48) and label == 2
    assert not list(kept.parent.glob(".*"))
    torch.testing.assert_close(train[5][0], frames, rtol=0, atol=0)  # now from the cache
    whole = count_events(read_events(train.samples[5][0]), 4)
    torch.testing.assert_close(frames, resize(whole, (48, 48), antialias=True), rtol=1e-3, atol=1e-3)


def test_frame_transform():
    frames = torch.arange(2 * 2 * 6 * 6.0).view(2, 2, 6, 6)
    assert torch.equal(FrameTransform()(frames), frames)
    assert torch.equal(FrameTransform(hflip=1.0)(frames), frames.flip(-1))
    assert torch.equal(FrameTransform(time_mean=True)(frames), frames.mean(0))
    rolled = {tuple(FrameTransform(roll=1)(frames).flatten().tolist()) for _ in range(200)}
    wanted = {tuple(frames.roll((i, j), (-2, -1)).flatten().tolist()) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert rolled == wanted


def write_frames(folder, classes=2, each=4, shape=(3, 2, 8, 8)):
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for label in range(classes):
            for index in range(each):
                path = folder / split / f"class{label}" / f"{index}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, frames=rng.poisson(0.5 + label, shape).astype(np.uint8))


STUDENT = "--model snn_resnet20_t2 --model-kwargs depths=(1,1,1) --device cpu --workers 0 --epochs 1"


def test_a_folder_of_frames_is_trained_on_and_validated(tmp_path, caplog):
    write_frames(tmp_path / "data")
    fixed = f"{STUDENT} --dataset frames --data-dir {tmp_path}/data --input-size 2 8 8 --num-classes 2 --batch-size 4"
    run = f"{fixed} --output {tmp_path} --roll 1 --epochs 3 --lr 0.01 --experiment run".split()
    train_distill.main(run)
    assert load(tmp_path / "run/last.pth.tar")["state_dict"]["conv1.weight"].shape[1] == 2
    measure = fixed.replace("--epochs 1", "").split()
    result = tmp_path / "r.json"
    checkpoint = str(tmp_path / "run/last.pth.tar")
    with caplog.at_level("INFO"):
        validate.main([*measure, "--checkpoint", checkpoint, "--results-file", str(result)])
    (found,) = json.loads(result.read_text())["results"]
    assert found["num_steps"] == 3  # the data's own, not the model's 2
    assert "snn_resnet20_t2 T = 3: top-1" in caplog.text
    assert found["top1"] == pytest.approx(rows(tmp_path / "run")[-1]["eval_top1"])
    refuse("frames have their own number of steps, 3", [*measure, "--checkpoint", checkpoint, "--num-steps", "4"],
           validate.main)  # fmt: skip

    refuse("--num-steps does nothing with --event-steps",
           [*measure, "--checkpoint", checkpoint, "--num-steps", "4", "--event-steps", "3"], validate.main)  # fmt: skip
    refuse("--num-steps does nothing with --dataset frames", [*run, "--num-steps", "4"])

    for option in ("--cutmix 1", "--aa rand-m9-mstd0.5", "--reprob 0.1", "--crop-padding 4"):
        refuse("does nothing with event frames", [*run, *option.split()])
    refuse("does nothing without --dataset cifar10dvs", [*run, "--event-steps", "4"])
    three = [*run[: run.index("--input-size")], *"--input-size 3 8 8 --num-classes 2 --experiment x".split()]
    refuse("has frames of 2 channels, the model takes 3: set --in-chans 2", [*three, "--output", str(tmp_path)])


@pytest.mark.parametrize("told", ["", "--mean 0.4 0.6 --std 2 3"])
def test_frames_are_normalised_as_in_the_run(tmp_path, told):
    """By whatever measures its model, a checkpoint's or one from the Hub; as counts where the run was told nothing."""
    write_frames(tmp_path / "data")
    fixed = f"--dataset frames --data-dir {tmp_path}/data --device cpu --workers 0 --batch-size 4"
    run = f"{fixed} {STUDENT} --input-size 2 8 8 --num-classes 2 --output {tmp_path} --experiment run --epochs 3 {told}"
    train_distill.main(run.split())
    checkpoint = tmp_path / "run/last.pth.tar"
    expected = rows(tmp_path / "run")[-1]["eval_rate_stem"]  # the loss is blind: layer3 is silent
    folder = hub.pack(tmp_path / "snn_resnet20_t2.frames", *hub.load(checkpoint), license="apache-2.0")
    for weights in (f"--model snn_resnet20_t2 --checkpoint {checkpoint}", f"--model local-dir:{folder}"):
        validate.main([*f"{fixed} {weights} --results-file {tmp_path}/r.json".split()])
        (found,) = json.loads((tmp_path / "r.json").read_text())["results"]
        assert found["rate_stem"] == pytest.approx(expected)


def test_folders_without_frames_are_no_classes(tmp_path):
    write_frames(tmp_path)
    for path in (".ipynb_checkpoints/0.npz", "class0/.0.npz"):
        (tmp_path / "train" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / path).touch()
    (tmp_path / "train/a").mkdir()
    dataset = FrameFolder(tmp_path, "train")
    assert dataset.class_to_idx == {"class0": 0, "class1": 1} and len(dataset) == 8


def test_splits_have_as_many_steps(tmp_path):
    write_frames(tmp_path)
    train = FrameFolder(tmp_path, "train")
    write_frames(tmp_path, shape=(5, 2, 8, 8))
    with pytest.raises(InputError, match="training frames have 3 time steps and validation frames 5: make them as"):
        check_splits(train, FrameFolder(tmp_path, "validation"))


def test_bad_frames(tmp_path):
    write_frames(tmp_path, each=1)
    path = tmp_path / "train/class0/0.npz"
    dataset = FrameFolder(tmp_path, "train")
    np.savez(path, np.zeros((5, 2, 8, 8)))
    with pytest.raises(InputError, match=r"0.npz' holds an array of shape \(5, 2, 8, 8\), expected \[3, C, H, W\]"):
        dataset[0]
    for content in ({"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.array([object()])}):
        np.savez(path, **content)
        with pytest.raises(InputError, match="0.npz' cannot be read as one array"):
            dataset[0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="0.npz' cannot be read as one array"):
        dataset[0]
    with pytest.raises(InputError, match="there is no folder"):
        FrameFolder(tmp_path, "test")
    shutil.rmtree(tmp_path / "train/class0")
    (tmp_path / "train/class1/0.npz").unlink()
    with pytest.raises(InputError, match="no files .npz or .npy in the class folders"):
        FrameFolder(tmp_path, "train")
    with pytest.raises(InputError, match="no recordings .aedat or .aedat4 of the test split"):
        Cifar10DVS(tmp_path, "test", 4, (48, 48))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/nameless.aedat").touch()
    with pytest.raises(InputError, match="nameless.aedat' must end in the recording's number"):
        Cifar10DVS(tmp_path, "train", 4, (48, 48))


@pytest.mark.slow
def test_cifar10dvs_end_to_end(recordings, tmp_path):
    """Teacher on the mean over time, then a student on the frames: the recipe, in a short form."""
    small = "--epochs 1 --batch-size 10 --workers 1 --device cpu --channels-last"
    fixed = f"--dataset cifar10dvs --data-dir {recordings} --val-split test --input-size 2 24 24 --roll 2 {small}"
    ann = f"--model cifar_resnet20 --event-steps 4 --output {tmp_path} --experiment teacher"
    train_distill.main([*fixed.split(), *ann.split()])
    weights = tmp_path / "teacher/last.pth.tar"
    names = [name for name in ("snn_resnet19_t4", "snn_resnet20_t4") if name in timm.list_models("snn_*")]
    student = f"--model {names[0]} --teacher cifar_resnet20 --teacher-checkpoint {weights} --output {tmp_path}"
    train_distill.main([*fixed.split(), *student.split(), "--experiment", "student"])
    (row,) = rows(tmp_path / "student")
    assert {"eval_top1_1", "eval_similarity_1", "train_kd_loss"} <= row.keys()
    refuse("a network that knows no time sees the mean of T frames", [*fixed.split(), "--model", "cifar_resnet20"])


def test_the_teacher_sees_the_mean_over_time():
    from snnzoo.distill import AnnGuidedDistillationTask

    student = timm.create_model("snn_resnet20_t2", in_chans=2, depths=(1, 1, 1))
    teacher = timm.create_model("cifar_resnet20", in_chans=2)
    task = AnnGuidedDistillationTask(student, teacher, input_size=(2, 16, 16)).train()
    frames = torch.randn(2, 5, 2, 16, 16)
    torch.testing.assert_close(task._teacher_input(frames), task._teacher_input(frames.mean(1)))
    task(frames, torch.tensor([0, 1]))["loss"].backward()
    seen = task.eval().inspect(frames)
    torch.testing.assert_close(seen["output"], student(frames))


def test_without_tonic_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tonic", None)
    monkeypatch.setitem(sys.modules, "tonic.io", None)
    with pytest.raises(InputError, match=r"event files are read by tonic and aedat: pip install 'snnzoo\[events\]'"):
        read_events(tmp_path / "r_0.aedat")


def test_tonic_is_imported_only_for_event_files():
    code = "import sys, snnzoo.data, snnzoo.options; sys.exit('tonic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
