"""GRU4Rec as the authors' later release (2018-2023) computes it, in plain NumPy and float64.

A reference for the tests, like `numpy_gru4rec`, whose pieces serve where both releases are the same: recurrent layer,
initial values, Adagrad, plain descent, momentum, cap of gradients. What is new: losses over additional negatives
(Hidasi and Karatzoglou, CIKM 2018, arXiv 1706.03847), one matrix for input and output, dropout of the embedded input,
logQ, sessions by start time, and lanes that leave one by one at the end of an epoch. Nothing is drawn here but initial
weights and session orders: negatives and dropout masks are given.

Shapes: B = `batch_size`; M <= B lanes are left in a mini-batch; N = M + `n_sample` columns of scores; H = units.
"""

import numpy as np
from numpy_gru4rec import (
    NumpyGRU4Rec,
    activation,
    bpr,
    gru_backward,
    gru_forward,
    minibatches_to_the_end,
    mrr,
    sigmoid,
    softmax,
    top1,
)

TINY = 1e-24  # inside the logarithms of the loss


# --- Losses of one lane, those of the 2016 release apart --------------------------------------------------------------
# y: its activated scores of all N columns; own: the column of its target. Each function returns the lane's loss and its
# derivative by y. The loss of the mini-batch is the sum over its M lanes divided by B.


def cross_entropy(y, own, bpreg):
    """-log(softmax(y)_own + 1e-24)."""
    p = softmax(y[None])[0]
    d_p = -1 / (p[own] + TINY)
    return -np.log(p[own] + TINY), d_p * p[own] * (np.eye(len(y))[own] - p)


def weights_of_negatives(y, own):
    """s_j = exp(y_j) / sum_k exp(y_k) over all columns but the lane's own, whose s is 0."""
    others = np.arange(len(y)) != own
    s = np.zeros_like(y)
    s[others] = softmax(y[others][None])[0]
    return s


def weighted_sum(s, f):
    """sum_j s_j f_j with s = `weights_of_negatives(y)`, and its derivative by the y in s: s_j (f_j - sum_k s_k f_k)."""
    total = (s * f).sum()
    return total, s * (f - total)


def top1_max(y, own, bpreg):
    """TOP1-max: sum_j s_j ( sigmoid(y_j - y_own) + sigmoid(y_j^2) )."""
    s, above, square = weights_of_negatives(y, own), sigmoid(y - y[own]), sigmoid(y**2)
    value, gradient = weighted_sum(s, above + square)
    d_above = s * above * (1 - above)
    gradient += d_above + s * square * (1 - square) * 2 * y
    gradient[own] -= d_above.sum()
    return value, gradient


def bpr_max(y, own, bpreg):
    """BPR-max: -log( sum_j s_j sigmoid(y_own - y_j) + 1e-24 ) + bpreg sum_j s_j y_j^2."""
    s, below = weights_of_negatives(y, own), sigmoid(y[own] - y)
    chance, d_chance = weighted_sum(s, below)
    d_below = s * below * (1 - below)
    d_chance -= d_below
    d_chance[own] += d_below.sum()
    penalty, d_penalty = weighted_sum(s, y**2)
    d_penalty += 2 * s * y
    return -np.log(chance + TINY) + bpreg * penalty, -d_chance / (chance + TINY) + bpreg * d_penalty


losses = {
    "cross-entropy": cross_entropy, "top1-max": top1_max, "bpr-max": bpr_max,
    **{loss.__name__: lambda y, own, bpreg, loss=loss: loss(y, own) for loss in (top1, bpr, mrr)},
}


# --- The model --------------------------------------------------------------------------------------------------------


class NumpyLater(NumpyGRU4Rec):
    """The later release's GRU4Rec, with our names of arguments; `adapt` is 'adagrad' or None.

    After `fit`, with K the number of mini-batches of all epochs: what `NumpyGRU4Rec` has, and `M` (K,), the lanes of
    each. `X`, `Y` (K, B) are -1, and `hidden` (K, B, H) is 0, in places that no lane has.
    """

    def __init__(
        self, layers, *, n_sample=0, sample_alpha=0.75, bpreg=1.0, logq=0.0, embedding=None,
        constrained_embedding=False, dropout_p_embed=0.0, time_sort=False, drop_tail=True, final_act=None, **arguments,
    ):
        super().__init__(layers, **arguments)
        pairwise = self.loss in ("top1", "bpr", "mrr")
        self.final_act = final_act or ("tanh" if pairwise else "linear")
        if self.final_act == "softmax":
            self.final_act = "linear"  # the softmax is in the loss
        self.n_sample, self.sample_alpha, self.bpreg, self.logq = n_sample, sample_alpha, bpreg, logq
        self.embedding, self.constrained_embedding = embedding, constrained_embedding
        self.table = "Wy" if constrained_embedding else "E" if embedding else None  # what the input's rows are of
        self.dropout_p_embed, self.time_sort, self.drop_tail = dropout_p_embed, time_sort, drop_tail

    # Data

    def session_order(self, frame, rng):
        """Sessions, numbered by sorted id, in the order in which an epoch uses them."""
        starts = frame.groupby(self.session_key)[self.time_key].min().sort_index()
        if self.train_random_order:
            return rng.permutation(len(starts))
        return sorted(range(len(starts)), key=lambda s: starts.iloc[s] if self.time_sort else s)  # stable

    def schedule(self, session_lengths, order):
        """The mini-batches of an epoch, as `minibatches_to_the_end` has them."""
        fewest = self.batch_size if self.drop_tail else 1 if self.n_sample else 2
        return minibatches_to_the_end(session_lengths, self.batch_size, order, fewest)

    # Initialisation

    def initialise(self, n_items, rng):
        """Draw the weights as in 2016, an embedding first. With one matrix for input and output it is `Wy`."""
        drawn = {"E": self.initial_matrix(rng, n_items, self.embedding)} if self.table == "E" else {}
        super().initialise(n_items, rng, {"E": self.embedding, "Wy": self.layers[-1], None: n_items}[self.table])
        self.weights.update(drawn)
        for name, p in drawn.items():
            for state, used in ((self.acc, self.adapt), (self.vel, self.momentum > 0)):
                state.update({name: np.zeros_like(p)} if used else {})

    # One mini-batch

    def embedded(self, inputs, mask=1):
        """Return the first layer's input: rows of the embedding, (M, width), or without one the item indices (M,)."""
        return self.weights[self.table][inputs] * mask if self.table else inputs

    def input_products(self, layer, x):
        """(Wx x, Wr x, Wz x); for the first layer x is what `embedded` gives, or item indices."""
        if layer == 0 and not self.table:
            return super().input_products(layer, x)
        if x.ndim == 1:
            x = self.embedded(x)
        return [x @ self.weights[f"{name}{layer}"] for name in ("Wx", "Wr", "Wz")]

    def correction(self, columns, n_targets):
        """logQ: what is taken off the scores before the activation, (N,): logq log P of the targets' columns, and logq
        log P^alpha of the samples'; P is the number of an item's events."""
        power = np.where(np.arange(len(columns)) < n_targets, 1, self.sample_alpha)
        return self.logq * power * np.log(self.counts[columns])

    def loss_of(self, y):
        """Loss of a mini-batch from its scores (M, N), and its derivative."""
        rows = [losses[self.loss](y[i], i, self.bpreg) for i in range(len(y))]
        values, gradients = zip(*rows)
        return sum(values) / self.batch_size, np.array(gradients) / self.batch_size

    def gradients(self, inputs, columns, hidden, masks):
        """Loss of one mini-batch, and its derivatives: see `NumpyGRU4Rec.gradients`.

        `columns` (N,): the items that are scored, the M targets and then the negatives; `masks`: that of the embedded
        input, then that of each layer. With one matrix for input and output rows["Wy"] has the M inputs first.
        """
        x, states, kept = self.embedded(inputs, masks[0]), [], []
        for layer, H in enumerate(hidden):
            states.append(x)  # what goes into the layer
            h, needed = gru_forward(self.input_products(layer, x), H, self.weights, layer, self.hidden_act)
            x = h * masks[layer + 1]
            kept.append(needed)
        Wy, By = self.weights["Wy"][columns], self.weights["By"][columns]
        before_act = x @ Wy.T + By - self.correction(columns, len(inputs))
        act, derivative = activation(self.final_act)
        value, d_scores = self.loss_of(act(before_act))

        d_before = d_scores * derivative(before_act)
        rows = {"Wy": (columns, d_before.T @ x), "By": (columns, d_before.sum(axis=0))}
        dense = {}
        d_state = d_before @ Wy
        for layer in reversed(range(len(hidden))):
            dh = d_state * masks[layer + 1]
            d_products, recurrent = gru_backward(dh, kept[layer], self.weights, layer, self.hidden_act)
            dense.update(recurrent)
            names = [f"{name}{layer}" for name in ("Wx", "Wr", "Wz")]
            if layer == 0 and not self.table:
                rows.update({name: (inputs, d) for name, d in zip(names, d_products)})
            else:
                dense.update({name: states[layer].T @ d for name, d in zip(names, d_products)})
                d_state = sum(d @ self.weights[name].T for name, d in zip(names, d_products))
        if self.table:
            d_input = d_state * masks[0]
            others, G = rows.get(self.table, (inputs[:0], d_input[:0]))
            rows[self.table] = np.concatenate([inputs, others]), np.concatenate([d_input, G])
        return value, [*states[1:], x], dense, rows

    # Training and scoring

    def masks_of(self, dropout_masks, k, n_lanes):
        """Return the factors of dropout in mini-batch k, mask / (1 - p) or 1: of the embedded input, of each layer."""
        given, masks = list(dropout_masks or []), []
        for p in [self.dropout_p_embed if self.table else 0, *[self.dropout_p_hidden] * len(self.layers)]:
            mask = np.asarray(given.pop(0), self.dtype) if p > 0 else None
            masks.append(1 if mask is None else (mask if mask.ndim == 2 else mask[k])[:n_lanes] / (1 - p))
        return masks

    def fit(self, frame, sampled_negatives=None, dropout_masks=None):
        """Train on `frame`.

        `sampled_negatives`: item indices (K, n_sample). `dropout_masks`: with `dropout_p_embed` that of the embedded
        input, and with `dropout_p_hidden` one for each layer: 0/1, (B, width) for every mini-batch, or (K, B, width);
        with fewer lanes the first M rows count.
        """
        self.item_index = {item: k for k, item in enumerate(dict.fromkeys(frame[self.item_key]))}
        items, session_lengths = self.sorted_events(frame)
        self.counts = np.bincount(items).astype(self.dtype)
        rng = np.random.RandomState(self.seed)
        self.initialise(len(self.item_index), rng)
        none = np.empty((0,), int)

        self.epoch_losses, self.costs, X, Y, after = [], [], [], [], []
        for _ in range(self.n_epochs):
            hidden = [np.zeros((self.batch_size, units), self.dtype) for units in self.layers]
            first = len(self.costs)
            for inputs, targets, starts, stays in self.schedule(session_lengths, self.session_order(frame, rng)):
                k = len(self.costs)
                hidden = [H[stays] for H in hidden]
                if self.reset_after_session:
                    hidden = [np.where(starts[:, None], 0, H) for H in hidden]
                negatives = sampled_negatives[k] if self.n_sample else none
                cost, hidden = self.train_minibatch(
                    items[inputs], np.concatenate([items[targets], negatives]), hidden,
                    self.masks_of(dropout_masks, k, len(inputs)))
                X.append(items[inputs])
                Y.append(items[targets])
                self.costs.append(cost)
                after.append(hidden)
            lanes = [len(x) for x in X[first:]]
            self.epoch_losses.append(float(np.average(self.costs[first:], weights=lanes)))
        self.M, self.costs = np.array([len(x) for x in X]), np.array(self.costs)
        self.X, self.Y = self.padded(X, -1), self.padded(Y, -1)
        self.hidden = [self.padded(states, 0) for states in zip(*after)]
        return self

    def padded(self, arrays, value):
        """Arrays with a row for each of M lanes as one array with B."""
        result = np.full((len(arrays), self.batch_size, *arrays[0].shape[1:]), value, arrays[0].dtype)
        for place, array in zip(result, arrays):
            place[:len(array)] = array
        return result
