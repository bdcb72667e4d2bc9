"""The training steps of 2016 and of the later release as plain PyTorch loops, to measure beside the project's own.

Autograd on the rows in use, the update rules written out.  Data and indices are on the device from the start, so that
drawing them costs nothing.  Importing it needs PyTorch.
"""
from typing import Any

import torch
from workload import BPR_MAX, N_ITEMS, TOP1, best


class TorchGRU4Rec:
    """One GRU layer, TOP1, adagrad; `_step` takes items, targets, what is kept of the states, and a dropout mask."""

    parameters: dict[str, Any] = TOP1

    def __init__(self, units: int, device: str, compiled: bool) -> None:
        self.units, self.device = units, device
        self.weights = {name: torch.empty(shape, device=device).uniform_(-0.1, 0.1)
                        for name, shape in self.shapes(units).items()}
        self.acc, self.vel = ({name: torch.zeros_like(w) for name, w in self.weights.items()} for _state in range(2))
        self.H = torch.zeros(self.parameters['batch_size'], units, device=device)
        self.step = torch.compile(self._step) if compiled else self._step

    @staticmethod
    def shapes(units: int) -> dict:
        return dict(W0=(N_ITEMS, 3 * units), B0=(3 * units,), Wh=(units, units), Whr=(units, units),
                    Whz=(units, units), Wy=(N_ITEMS, units), By=(N_ITEMS,))

    @staticmethod
    def state(H: Any, mask: Any, gates: Any, Wh: Any, Whr: Any, Whz: Any) -> Any:
        x_h, x_r, x_z = gates.chunk(3, dim=1)
        r, z = torch.sigmoid(x_r + H @ Whr), torch.sigmoid(x_z + H @ Whz)
        return ((1 - z) * H + z * torch.tanh(x_h + (H * r) @ Wh)) * mask

    def _loss(self, H: Any, masks: list, used: dict) -> tuple[Any, Any]:
        x, B0, Wh, Whr, Whz, Wy, By = used.values()
        (mask,) = masks
        H = self.state(H, mask, x + B0, Wh, Whr, Whz)
        scores = torch.tanh(H @ Wy.T + By)
        own = scores.diagonal()
        loss = (torch.sigmoid(scores - own[:, None]) + torch.sigmoid(scores ** 2)).mean()
        return loss - torch.sigmoid(own ** 2).mean() / len(H), H

    def _step(self, item: Any, target: Any, keep: Any, mask: Any) -> Any:
        return self._train(dict(W0=item, Wy=target, By=target), keep, [mask])

    def _train(self, rows: dict, keep: Any, masks: list) -> Any:
        used = {name: (w[rows[name]] if name in rows else w).detach().requires_grad_()
                for name, w in self.weights.items()}
        loss, H = self._loss(self.H * keep[:, None], masks, used)
        gradients = torch.autograd.grad(loss, list(used.values()))
        with torch.no_grad():
            for name, g in zip(used, gradients):
                self._update(name, g, rows.get(name))
            self.H.copy_(H.detach())
        return loss.detach()

    def _update(self, name: str, g: Any, rows: Any) -> None:
        w, acc, vel = self.weights[name], self.acc[name], self.vel[name]
        momentum, squares = self.parameters.get('momentum', 0), g * g
        old = acc if rows is None else acc[rows]
        step = -self.parameters['learning_rate'] * g / torch.sqrt(old + squares + 1e-6)
        if momentum:
            step += momentum * (vel if rows is None else vel[rows])
            if rows is None:
                vel.copy_(step)
            else:
                vel[rows] = step
        if rows is None:
            w.add_(step)
            acc.add_(squares)
        else:
            w.index_add_(0, rows, step)
            acc.index_add_(0, rows, squares)

    def inputs(self, steps: int) -> list:
        """(items, targets, kept, masks), each with a row for each step."""
        n_lanes, p = self.parameters['batch_size'], self.parameters['dropout_p_hidden']
        item = torch.randint(N_ITEMS, (steps + 1, n_lanes), device=self.device)
        keep = (torch.rand(steps, n_lanes, device=self.device) > 1 / 3).float()
        return [item[:-1], item[1:], keep, self.masks(steps, p)]

    def masks(self, steps: int, p: float) -> Any:
        kept = torch.rand(steps, self.parameters['batch_size'], self.units, device=self.device) >= p
        return kept.float() / (1 - p)

    def rate(self, steps: int = 200) -> float:
        """Seconds per mini-batch."""
        inputs = self.inputs(steps)

        def run() -> float:
            for row in zip(*inputs):
                loss = self.step(*row)
            return loss.item()
        run()
        return best(run, 3) / steps


class TorchLater(TorchGRU4Rec):
    """BPR-max with additional negatives, one matrix for input and output, dropout of the embedding, momentum."""

    parameters = BPR_MAX

    @staticmethod
    def shapes(units: int) -> dict:
        return dict(Wy=(N_ITEMS, units), By=(N_ITEMS,), W0=(units, 3 * units), B0=(3 * units,),
                    Wh=(units, units), Whr=(units, units), Whz=(units, units))

    def _loss(self, H: Any, masks: list, used: dict) -> tuple[Any, Any]:
        Wy, By, W0, B0, Wh, Whr, Whz = used.values()
        mask, embed_mask = masks
        n_lanes = len(H)
        embedded, scored = Wy[:n_lanes] * embed_mask, Wy[n_lanes:]
        H = self.state(H, mask, embedded @ W0 + B0, Wh, Whr, Whz)
        scores = H @ scored.T + By
        lane = torch.arange(n_lanes, device=scores.device)
        own = scores[lane, lane]
        is_own = torch.zeros_like(scores, dtype=torch.bool)
        is_own[lane, lane] = True
        weights = torch.softmax(scores.masked_fill(is_own, -torch.inf), dim=1)
        below = (weights * torch.sigmoid(own[:, None] - scores)).sum(dim=1)
        return -torch.log(below + 1e-24).mean(), H

    def _step(self, item: Any, target: Any, keep: Any, mask: Any, embed_mask: Any,  # type: ignore[override]
              negatives: Any) -> Any:
        scored = torch.cat([target, negatives])
        return self._train(dict(Wy=torch.cat([item, scored]), By=scored), keep, [mask, embed_mask])

    def inputs(self, steps: int) -> list:
        """Those of `TorchGRU4Rec`, and the embedding's masks and the negatives."""
        negatives = torch.randint(N_ITEMS, (steps, self.parameters['n_sample']), device=self.device)
        return [*super().inputs(steps), self.masks(steps, self.parameters['dropout_p_embed']), negatives]
