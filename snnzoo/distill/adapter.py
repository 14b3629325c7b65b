"""C_k: from a feature map of the student to one that the teacher can go on from."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """Two 1x1 convolutions with batch norm and ReLU between, and resampling where the maps differ in size.

    Shrinking is by adaptive average pooling, before the convolutions; growing is bilinear, after them. Where student
    and teacher are of one width it begins as the identity, up to scale: the convolutions pass each channel on, and the
    norm between them lifts what is less than two standard deviations below the mean above the ReLU's zero.

    Args:
        in_shape: ``(C, H, W)`` of the student's feature map.
        out_shape: ``(C, H, W)`` of the teacher's.

    Source: arXiv 2503.16572, section 4; 0.17 M parameters in all for widths 64, 128, 256.
    """

    def __init__(self, in_shape: tuple[int, int, int], out_shape: tuple[int, int, int]):
        super().__init__()
        in_chs, out_chs = in_shape[0], out_shape[0]
        self.conv1 = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        if in_chs == out_chs:
            nn.init.dirac_(self.conv1.weight)
            nn.init.dirac_(self.conv2.weight)
            nn.init.constant_(self.bn1.bias, 2.0)
        self.size = out_shape[1:]
        self.shrinks = out_shape[1] < in_shape[1]
        self.grows = out_shape[1] > in_shape[1]

    @torch.no_grad()
    def imitate(self, features: Tensor) -> None:
        """Give what comes out the mean and standard deviation of each channel of ``features``, ``[B, *out_shape]``.

        In a run of several processes, of all their features together.
        """
        x = features.double()
        moments = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
            moments /= dist.get_world_size()
        mean, square = moments
        self.bn2.weight.copy_((square - mean * mean).clamp(min=0).sqrt())
        self.bn2.bias.copy_(mean)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, *in_shape]`` to ``[B, *out_shape]``."""
        if self.shrinks:
            x = F.adaptive_avg_pool2d(x, self.size)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False) if self.grows else x
