"""The published architecture of 24 layers (the same in both public repositories), as data."""

from systems.textnas.space import Arch, Layer

PAPER = Arch(
    (
        Layer(-1, "maxpool3"),
        Layer(0, "attention"),
        Layer(0, "conv7"),
        Layer(2, "gru", (1, 2)),
        Layer(2, "conv3", (1,)),
        Layer(4, "conv3", (2, 4)),
        Layer(5, "conv1", (2, 3, 4, 5)),
        Layer(2, "gru", (1, 2)),
        Layer(4, "maxpool3", (1, 3, 4, 6, 7)),
        Layer(6, "maxpool3", (5, 7, 8)),
        Layer(5, "attention", (0, 1, 4, 7, 8)),
        Layer(6, "avgpool3", (0, 3, 4, 5, 6)),
        Layer(10, "conv3", (0, 1, 3, 5, 8)),
        Layer(11, "conv5", (0, 1, 6, 9, 10, 12)),
        Layer(12, "conv1", (2, 6, 7, 8, 10, 11)),
        Layer(14, "conv7", (0, 6, 10, 11, 14)),
        Layer(14, "conv5", (9, 10, 12, 14)),
        Layer(16, "avgpool3", (1, 2, 3, 4, 7, 9, 14)),
        Layer(15, "conv7", (5, 13, 14, 15, 17)),
        Layer(16, "conv7", (3, 10, 14)),
        Layer(16, "maxpool3", (0, 1, 10, 11, 14, 15, 16, 17)),
        Layer(16, "attention", (1, 2, 3, 7, 9, 10, 11, 12, 14)),
        Layer(21, "attention", (2, 3, 4, 5, 7, 9, 10, 15, 21)),
        Layer(21, "conv7", (0, 3, 7, 12, 16)),
    )
)
