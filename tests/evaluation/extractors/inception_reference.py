"""Inception v3 in PyTorch: torchvision's layers by their names, with the pools of the Fréchet Inception distance."""

import torch
from torch import nn
from torch.nn import functional


class Basic(nn.Module):
    def __init__(self, channels, out, size, stride=1, padding=None):
        super().__init__()
        size = (size, size) if isinstance(size, int) else size
        same = tuple(k // 2 for k in size)
        self.conv = nn.Conv2d(channels, out, size, stride, same if padding is None else padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Block(nn.Module):
    """Chains of layers by name; those of a tuple take the same input. A pool comes last."""

    def __init__(self, channels, chains, pool_features=0, pool="average"):
        super().__init__()
        self.chains, self.pool = [], pool
        for chain in chains:
            width = channels
            for name, out, *rest in chain:
                self.add_module(name, Basic(width, out, *rest))
                width = width if name.endswith("a") else out
            self.chains.append([name for name, *_ in chain])
        if pool_features:
            self.branch_pool = Basic(channels, pool_features, 1)

    def forward(self, x):
        outputs = []
        for chain in self.chains:
            y = x
            for name in chain:
                if name.endswith("a"):
                    outputs.append(getattr(self, name)(y))
                else:
                    y = getattr(self, name)(y)
            outputs.append(y)
        if self.pool == "average":
            counts = functional.avg_pool2d(torch.ones_like(x), 3, 1, 1)
            outputs.append(self.branch_pool(functional.avg_pool2d(x, 3, 1, 1) / counts))
        elif self.pool == "same":
            outputs.append(self.branch_pool(functional.max_pool2d(x, 3, 1, 1)))
        else:
            outputs.append(functional.max_pool2d(x, 3, 2))
        return torch.cat(outputs, 1)


class InceptionA(Block):
    def __init__(self, channels, pool_features):
        double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        chains = [[("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)], double]
        super().__init__(channels, chains, pool_features)


class InceptionC(Block):
    def __init__(self, channels, channels_7x7):
        c = channels_7x7
        single = [("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))]
        double = [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, (7, 1)), ("branch7x7dbl_3", c, (1, 7))]
        double += [("branch7x7dbl_4", c, (7, 1)), ("branch7x7dbl_5", 192, (1, 7))]
        super().__init__(channels, [[("branch1x1", 192, 1)], single, double], 192)


class InceptionE(Block):
    def __init__(self, channels, pool="average"):
        single = [("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]
        double = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
        double += [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]
        super().__init__(channels, [[("branch1x1", 320, 1)], single, double], 192, pool)


class InceptionV3(nn.Module):
    def __init__(self, num_classes=1008, **_):
        super().__init__()
        self.Conv2d_1a_3x3 = Basic(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Basic(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = Basic(32, 64, 3)
        self.Conv2d_3b_1x1 = Basic(64, 80, 1)
        self.Conv2d_4a_3x3 = Basic(80, 192, 3, 1, 0)
        for name, channels, pool_features in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            self.add_module(f"Mixed_{name}", InceptionA(channels, pool_features))
        double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2, 0)]
        self.Mixed_6a = Block(288, [[("branch3x3", 384, 3, 2, 0)], double], pool="half")
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            self.add_module(f"Mixed_{name}", InceptionC(768, inner))
        single = [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2, 0)]
        triple = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
        self.Mixed_7a = Block(768, [single, [*triple, ("branch7x7x3_4", 192, 3, 2, 0)]], pool="half")
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280), InceptionE(2048, "same")
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name, child in self.named_children():
            x = child(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))
