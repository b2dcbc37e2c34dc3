"""A call or a training step of a layer of `torch.nn`, as a run that is timed."""

import torch

from benchmarks.speed.contenders import CELLS
from benchmarks.speed.timing import Run


def torch_run(shape, mode, x, y, device):
    """Returns the run of the layer of `torch.nn` with learned initial states.

    Args:
        shape: The sizes of a batch and of the layer.
        mode: The action and the cell.
        x: The sequences, a NumPy array.
        y: The targets of `fit`, a NumPy array.
        device: "cpu" or "cuda".
    """
    layer = getattr(torch.nn, CELLS[mode.cell].torch)
    rnn = layer(shape.features, shape.units, batch_first=True).to(device)
    dense = torch.nn.Linear(shape.units, 1).to(device)
    count = 2 if mode.cell == "LSTM" else 1
    states = [torch.zeros(shape.units, device=device) for _ in range(count)]
    x, y = (torch.from_numpy(array).to(device) for array in (x, y))
    weights = [*rnn.parameters(), *(state.requires_grad_() for state in states)]
    optimizer = torch.optim.Adam([*weights, *dense.parameters()])

    def call(x):
        tiled = [state.expand(1, len(x), -1).contiguous() for state in states]
        outputs, _ = rnn(x, tiled if count > 1 else tiled[0])
        return outputs if mode.return_sequences else outputs[:, -1]

    def infer():
        with torch.no_grad():
            call(x)
        if device == "cuda":
            torch.cuda.synchronize()

    def train():
        for weight in weights:
            weight.grad = None
        loss = call(x).square().sum()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def fit():
        for rows in torch.randperm(len(x), device=device).split(shape.batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(dense(call(x[rows])), y[rows])
            loss.backward()
            optimizer.step()
        return loss.item()

    return Run({"inference": infer, "training step": train, "fit": fit}[mode.action])
