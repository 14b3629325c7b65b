"""Give the weights of a network with ``shortcut='pad'`` to one with ``shortcut='conv'`` that says the same.

The 1x1 convolution takes over what the padding passed on, and its batch norm begins as the identity for the statistics
of training images. The channels that were padded with zeros begin with random weights behind a scale of zero.

python c10-shortcuts-2026-11-28.py hub_configs/snn_resnet20_t4.c10/model.safetensors --data-dir DIR \
    --output snn_resnet20_t4.c10.conv.safetensors
"""

import argparse

import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision import datasets, transforms

import snnzoo  # noqa: F401, registers the model

NEURON = dict(decay=0.5, detach_reset=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, default=5000)
    args = parser.parse_args()

    torch.manual_seed(0)
    before = timm.create_model("snn_resnet20_t4", shortcut="pad", **NEURON).eval()
    before.load_state_dict(load_file(args.checkpoint))
    after = timm.create_model("snn_resnet20_t4", shortcut="conv", **NEURON).eval()
    after.load_state_dict(before.state_dict(), strict=False)
    shortcuts = [after.layer2[0].downsample, after.layer3[0].downsample]
    kept = []
    for conv, norm in shortcuts:
        new, old = conv.weight.shape[:2]
        first = (new - old) // 2
        kept.append(slice(first, first + old))
        with torch.no_grad():
            conv.weight[kept[-1]] = torch.eye(old)[:, :, None, None]
            norm.weight.zero_()
            norm.weight[kept[-1]] = 1
            norm.running_var.fill_(1 - norm.eps)

    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = datasets.ImageFolder(f"{args.data_dir}/train", transforms.Compose(steps))
    chosen = torch.utils.data.Subset(images, torch.randperm(len(images))[: args.images].tolist())
    batches = [batch for batch, _ in torch.utils.data.DataLoader(chosen, 250)]
    sums = [0.0, 0.0]

    def watch(i):
        def hook(module, inputs, output):
            x = output if isinstance(output, torch.Tensor) else torch.stack(list(output))
            flat = x.transpose(-3, -1).reshape(-1, x.shape[-3]).double()
            sums[i] = sums[i] + torch.stack([flat.mean(0), flat.square().mean(0)]) / len(batches)

        return hook

    hooks = [conv.register_forward_hook(watch(i)) for i, (conv, _) in enumerate(shortcuts)]
    with torch.no_grad():
        worst = max((before(batch) - after(batch)).abs().max() for batch in batches)
        for hook in hooks:
            hook.remove()
        for (_, norm), rows, (mean, square) in zip(shortcuts, kept, sums, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(square - mean.square())
            norm.weight[rows] = (norm.running_var + norm.eps).sqrt()[rows]
            norm.bias[rows] = norm.running_mean[rows]
        again = torch.cat([before(batch).argmax(1) == after(batch).argmax(1) for batch in batches]).float().mean()
    print(f"logits differ by {worst:.3g} with the identity; after, {100 * again:.2f} % of the answers are the same")
    save_file(after.state_dict(), args.output)


if __name__ == "__main__":
    main()
