"""GRU4Rec as the authors' later release (2018-2023) computes it, in plain NumPy and float64.

A reference for the tests, like `numpy_gru4rec`, whose pieces serve where both releases are the same: recurrent layer,
initial values, Adagrad, plain descent, momentum, cap of gradients. What is new: losses over additional negatives
(Hidasi and Karatzoglou, CIKM 2018, arXiv 1706.03847), one matrix for input and output, dropout of the embedded input,
logQ, sessions by start time, and lanes that leave one by one at the end of an epoch. Nothing is drawn here but initial
weights and session orders: negatives and dropout masks are given.

Shapes: B = `batch_size`; M <= B lanes are left in a mini-batch; N = M + `n_sample` columns of scores; H = units.
"""

import numpy as np
from numpy_gru4rec import NumpyGRU4Rec, bpr, mrr, sigmoid, softmax, top1

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

    With `dropout_p_embed` the first of the dropout masks is that of the embedded input.
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
        self.dropouts.insert(0, dropout_p_embed if self.table else 0)
        self.dropout_p_embed, self.time_sort, self.drop_tail = dropout_p_embed, time_sort, drop_tail

    # Data

    def session_order(self, frame, rng):
        if self.train_random_order or not self.time_sort:
            return super().session_order(frame, rng)
        starts = frame.groupby(self.session_key)[self.time_key].min().sort_index()
        return sorted(range(len(starts)), key=lambda s: starts.iloc[s])  # stable

    def fewest_lanes(self):
        return self.batch_size if self.drop_tail else 1 if self.n_sample else 2

    # Initialisation

    def initial_weights(self, n_items, rng):
        """Draw the weights as in 2016, an embedding first. With one matrix for input and output it is `Wy`."""
        drawn = {"E": self.initial_matrix(rng, n_items, self.embedding)} if self.table == "E" else {}
        n_inputs = {"E": self.embedding, "Wy": self.layers[-1], None: n_items}[self.table]
        return super().initial_weights(n_items, rng, n_inputs) | drawn

    # One mini-batch

    def embedded(self, inputs, mask=1):
        """Return the first layer's input: rows of the embedding, (M, width), or without one the item indices (M,)."""
        return self.weights[self.table][inputs] * mask if self.table else inputs

    def input_products(self, layer, x):
        """(Wx x, Wr x, Wz x); for the first layer x is what `embedded` gives, or item indices."""
        return super().input_products(layer, self.embedded(x) if x.ndim == 1 else x)

    def correction(self, columns, n_targets):
        """logQ: what is taken off the scores before the activation, (N,): logq log P of the targets' columns, and logq
        log P^alpha of the samples'; P is the number of an item's events."""
        power = np.where(np.arange(len(columns)) < n_targets, 1, self.sample_alpha)
        return self.logq * power * np.log(self.counts[columns])

    def loss_of(self, y):
        rows = [losses[self.loss](y[i], i, self.bpreg) for i in range(len(y))]
        values, gradients = zip(*rows)
        return sum(values) / self.batch_size, np.array(gradients) / self.batch_size

    def gradients(self, inputs, columns, hidden, masks):
        """Loss of one mini-batch, and its derivatives: see `NumpyGRU4Rec.gradients`.

        `columns` (N,): the items that are scored, the M targets and then the negatives; `masks`: that of the embedded
        input, then that of each layer. With one matrix for input and output rows["Wy"] has the M inputs first.
        """
        value, states, dense, rows, d_input = super().gradients(
            self.embedded(inputs, masks[0]), columns, hidden, masks[1:])
        if self.table:
            d_input = d_input * masks[0]
            others, G = rows.get(self.table, (inputs[:0], d_input[:0]))
            rows[self.table] = np.concatenate([inputs, others]), np.concatenate([d_input, G])
        return value, states, dense, rows, d_input
