"""Cross entropy and top-1 of snn_resnet20_t4 by what its read-out keeps from step to step, from one pass over images.

python readout.py FOLDER ... --data-dir DIR [--train N] [--num-steps T]
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from snnzoo.rate import time_mean
from snnzoo.weights import create_model

DECAYS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def pooled_spikes(model: torch.nn.Module, images: torch.utils.data.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier could read at each step, ``[T, N, C]``, and the labels."""
    steps, labels = [], []
    last = model.layer3[-1].act2
    handle = last.register_forward_hook(lambda module, args, spikes: steps.append(spikes.mean((3, 4))))
    for batch, target in DataLoader(images, 250):
        model(batch.contiguous(memory_format=torch.channels_last))
        labels.append(target)
    handle.remove()
    return torch.cat(steps, 1), torch.cat(labels)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="with config.json and model.safetensors")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--train", type=int, default=0, metavar="N", help="training images, cropped and flipped, too")
    parser.add_argument("--num-steps", type=int, metavar="T")
    args = parser.parse_args()

    def images(split, *augmentation):
        steps = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        return datasets.ImageFolder(f"{args.data_dir}/{split}", transforms.Compose([*augmentation, *steps]))

    print("folder,steps,images,count,decay,loss,top1")
    for folder in args.folders:
        model = create_model(f"local-dir:{folder}", pretrained=True, num_steps=args.num_steps)
        model = model.to(memory_format=torch.channels_last).eval()
        splits = {"test": images("validation")}
        if args.train:
            train = images("train", transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip())
            torch.manual_seed(0)
            splits["training"] = Subset(train, torch.randperm(len(train))[: args.train].tolist())
        for name, split in splits.items():
            spikes, labels = pooled_spikes(model, split)
            for decay in DECAYS:
                logits = model.fc(time_mean(spikes, decay))
                loss, top1 = F.cross_entropy(logits, labels), 100 * (logits.argmax(1) == labels).double().mean()
                row = (Path(folder).name, model.num_steps, name, len(labels), decay, f"{loss:.4f}", f"{top1:.2f}")
                print(*row, sep=",", flush=True)


if __name__ == "__main__":
    main()
