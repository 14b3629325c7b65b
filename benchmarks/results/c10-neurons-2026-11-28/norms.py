"""Top-1 on the test images with batch norm's statistics taken anew from 10,000 training images.

python norms.py --data-dir DIR [--crop]
"""

import argparse

import timm
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import snnzoo  # noqa: F401, registers the model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--crop", action="store_true", help="training images are cropped as well as flipped")
    args = parser.parse_args()

    def images(split, *augmentation):
        steps = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        return datasets.ImageFolder(f"{args.data_dir}/{split}", transforms.Compose([*augmentation, *steps]))

    crop = [transforms.RandomCrop(32, 4)] if args.crop else []
    train = images("train", *crop, transforms.RandomHorizontalFlip())
    model = timm.create_model("snn_resnet20_t4", pretrained=True, readout_decay=1.0)
    model = model.to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
    torch.manual_seed(0)
    chosen = Subset(train, torch.randperm(len(train))[:10000].tolist())
    with torch.no_grad():
        for batch, _ in DataLoader(chosen, 500):
            model(batch.contiguous(memory_format=torch.channels_last))
        model.eval()
        right = [
            (model(batch.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).float()
            for batch, labels in DataLoader(images("validation"), 250)
        ]
    print(f"top-1 {100 * torch.cat(right).mean():.2f} %")


if __name__ == "__main__":
    main()
