"""The mean of several checkpoints' weights, with batch norm's statistics taken anew on training images.

python c10-average-2026-11-27.py RUN/checkpoint-9.pth.tar RUN/checkpoint-10.pth.tar RUN/checkpoint-11.pth.tar \
    --data-dir DIR --output snn_resnet20_t4.c10.after-85-epochs.pth.tar
"""

import argparse

import timm
import torch
from torchvision import datasets, transforms

import snnzoo  # noqa: F401, registers the model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--use-ema", action="store_true", help="begin with the averaged weights")
    args = parser.parse_args()

    key = "state_dict_ema" if args.use_ema else "state_dict"
    states = [torch.load(path, weights_only=True, map_location="cpu")[key] for path in args.checkpoints]
    sums = {key: sum(state[key].double() for state in states) for key in states[0]}
    mean = {key: (total / len(states)).to(states[0][key].dtype) for key, total in sums.items()}
    model = timm.create_model("snn_resnet20_t4", shortcut="pad", decay=0.65, detach_reset=False)
    model.load_state_dict(mean)
    model.to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = datasets.ImageFolder(f"{args.data_dir}/train", transforms.Compose(steps))
    torch.manual_seed(0)
    chosen = torch.utils.data.Subset(images, torch.randperm(len(images))[: args.images].tolist())
    with torch.no_grad():
        for batch, _ in torch.utils.data.DataLoader(chosen, 250):
            model(batch.to(memory_format=torch.channels_last))
    torch.save({"arch": "snn_resnet20_t4", "state_dict": model.state_dict()}, args.output)


if __name__ == "__main__":
    main()
