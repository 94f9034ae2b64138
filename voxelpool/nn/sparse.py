from torch import nn


class SparseMiddle(nn.Module):
    pass
