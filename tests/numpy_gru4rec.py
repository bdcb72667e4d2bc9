"""GRU4Rec as the authors' 2016 release computes it, in plain NumPy.

A reference for the tests, to be read beside the paper (Hidasi et al., ICLR 2016, arXiv 1511.06939): no symbolic
graph, no automatic differentiation, nothing fused. Gradients are derived by hand, and every rule that treats repeated
items in a mini-batch specially is an explicit loop over the occurrences. It shares no code with what it checks.

Shapes: B = mini-batch size (number of lanes), H = units of a layer, N = number of items.
"""

import math

import numpy as np

EPSILON = 1e-6  # added to the accumulator inside the square root


# --- Section 3.1.1, Figure 2: session-parallel mini-batches ---------------------------------------------------------


def minibatches(session_lengths, batch_size, order=None):
    """One epoch of session-parallel mini-batches (section 3.1.1, Figure 2).

    Events are numbered session after session: the first session has 0 .. length - 1, the next one continues the count.
    Lane k starts with the k-th session of `order` (default: as listed). A lane whose session has no further event to
    predict takes the next unused session; the epoch ends when there is none, and the other lanes' rest is dropped.

    Returns a list of (input_positions, target_positions, starts), each of shape (B,); `starts` is true where the lane
    begins a session, that is, where its hidden state has to be zero.
    """
    return [step[:3] for step in minibatches_to_the_end(session_lengths, batch_size, order, fewest_lanes=batch_size)]


def minibatches_to_the_end(session_lengths, batch_size, order=None, fewest_lanes=1):
    """The same, but a lane that finds no session leaves.

    The lanes that are left close ranks; the epoch ends when there are fewer than `fewest_lanes`.

    Returns a list of (input_positions, target_positions, starts, stays), each of shape (M,); `stays` has the place that
    each lane had in the mini-batch before, whose hidden state it keeps unless `starts` is true.
    """
    first_event = [sum(session_lengths[:s]) for s in range(len(session_lengths))]
    waiting = list(range(len(session_lengths))) if order is None else list(order)

    lanes = [(waiting.pop(0), 0, place) for place in range(batch_size)]  # session, event in it, place before
    steps = []
    while len(lanes) >= fewest_lanes:
        if all(event < session_lengths[session] - 1 for session, event, _ in lanes):
            inputs = np.array([first_event[session] + event for session, event, _ in lanes])
            starts = np.array([event == 0 for _, event, _ in lanes])
            steps.append((inputs, inputs + 1, starts, np.array([place for _, _, place in lanes])))
            lanes = [(session, event + 1, place) for place, (session, event, _) in enumerate(lanes)]
        # Each ended lane takes one session per pass. A session of length 1 ends at once and waits for the next pass,
        # so the lanes after it are served before its lane is served again.
        left = []
        for session, event, place in lanes:
            if event < session_lengths[session] - 1:
                left.append((session, event, place))
            elif waiting:
                left.append((waiting.pop(0), 0, place))
        lanes = left
    return steps


# --- Activations: name -> (function of x, derivative as a function of x) --------------------------------------------


def sigmoid(x):
    """1 / (1 + exp(-x)), written as exp(-log(1 + exp(-x))), which neither overflows nor loses small values."""
    return np.exp(-np.logaddexp(0, -x))


activations = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "linear": (lambda x: x, lambda x: np.ones_like(x)),
    # Theano gives max(x, 0) the derivative 1 at x = 0. It matters: a unit that is exactly 0 still gets a gradient.
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x >= 0).astype(x.dtype)),
}


def activation(name):
    """The entry of `activations`, or of the later release's: 'leaky-X', 'elu-X', 'selu-X-Y' with numbers X and Y.

    'leaky-X' is x or X x, 'elu-X' is x or X (e^x - 1), 'selu-X-Y' is X times (x or Y (e^x - 1)); x from 0 on.
    """
    kind, *numbers = name.split("-")
    numbers = [float(number) for number in numbers]
    if not numbers:
        return activations[kind]
    if kind == "leaky":
        return lambda x: np.where(x >= 0, x, numbers[0] * x), lambda x: np.where(x >= 0, 1, numbers[0])
    scale, alpha = {"elu": [1, *numbers], "selu": numbers}[kind]
    return (
        lambda x: scale * np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
        lambda x: scale * np.where(x >= 0, 1, alpha * np.exp(np.minimum(x, 0))),
    )


def softmax(r):
    """exp(r_j) / sum_k exp(r_k) of each row."""
    e = np.exp(r - r.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# --- Section 3.1.3: losses ------------------------------------------------------------------------------------------
# r: the scores that a lane gives to its columns, (N,); its own target is in the column `own`, the others are its
# negative samples (section 3.1.2). Each function returns the lane's loss and its derivative by r; s is the logistic
# function.


def top1(r, own):
    """TOP1: mean_j( s(r_j - r_own) + s(r_j^2) ) - s(r_own^2) / N."""
    N, above, square = len(r), sigmoid(r - r[own]), sigmoid(r**2)
    d_square = square * (1 - square) * 2 * r
    gradient = (above * (1 - above) + d_square) / N
    # r_own is in every s(r_j - r_own), and its own square is taken out again.
    gradient[own] -= (above * (1 - above)).sum() / N + d_square[own] / N
    return (above + square).mean() - square[own] / N, gradient


def bpr(r, own):
    """BPR: mean_j of -log s(r_own - r_j); j = own is included and adds the constant log(2) / N."""
    gradient = sigmoid(r - r[own]) / len(r)
    gradient[own] -= gradient.sum()
    return np.logaddexp(0, r - r[own]).mean(), gradient  # -log s(d) = log(1 + exp(-d))


def cross_entropy(r, own):
    """Cross-entropy: -log softmax(r)_own."""
    probability = softmax(r[None])[0]
    gradient = probability.copy()
    gradient[own] -= 1
    return -np.log(probability[own]), gradient


def mrr(r, own):
    """MRR optimisation: 1 - 1 / R, R = 1 + (N - 1) (1 - Phi(z)), z = (r_own - mean_j) / std_j."""
    N, centred = len(r), r - r.mean()
    std = np.sqrt((centred**2).mean() + EPSILON)
    z = centred[own] / std
    R = 1 + (N - 1) * math.erfc(z / math.sqrt(2)) / 2
    dR_dz = -(N - 1) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    dz = (np.eye(N)[own] - 1 / N) / std - z / std * centred / (N * std)
    return 1 - 1 / R, dR_dz / R**2 * dz


def mean_of_lanes(loss):
    """Loss of a mini-batch and its derivative, from scores B x B with each lane's own target on the diagonal."""
    def of_minibatch(r_hat):
        values, gradients = zip(*(loss(r, own) for own, r in enumerate(r_hat)))
        return sum(values) / len(r_hat), np.array(gradients, r_hat.dtype) / len(r_hat)
    return of_minibatch


losses = {name: mean_of_lanes(loss) for name, loss in
          (("top1", top1), ("bpr", bpr), ("cross-entropy", cross_entropy), ("mrr", mrr))}


# --- Section 3, equations 2 to 5: one step of a GRU layer, forwards and backwards -----------------------------------


def gru_forward(from_input, H, weights, layer, hidden_act):
    """New state of one layer; `from_input` = (Wx x, Wr x, Wz x), each B x H, and the previous state H is B x H.

    r = s(Wr x + H Whr + Br), z = s(Wz x + H Whz + Bz), c = act(Wx x + (H * r) Wh + Bh), h = (1 - z) H + z c.
    The reset gate acts on the state before the matrix product. Returns h and what the way back needs.
    """
    W = {name: weights[f"{name}{layer}"] for name in ("Wh", "Whr", "Whz", "Bh", "Br", "Bz")}
    r = sigmoid(from_input[1] + H @ W["Whr"] + W["Br"])
    z = sigmoid(from_input[2] + H @ W["Whz"] + W["Bz"])
    before_act = from_input[0] + (H * r) @ W["Wh"] + W["Bh"]
    c = activation(hidden_act)[0](before_act)
    return (1 - z) * H + z * c, (H, r, z, c, before_act)


def gru_backward(dh, kept, weights, layer, hidden_act):
    """Gradients of one layer from dh = d loss / d h (B x H), by the chain rule through `gru_forward`.

    The previous state H is a constant: no gradient flows to earlier mini-batches. Returns the derivatives by
    (Wx x, Wr x, Wz x) and a dictionary with those by the layer's recurrent matrices and biases.
    """
    H, r, z, c, before_act = kept
    d_candidate = dh * z * activation(hidden_act)[1](before_act)  # h = (1 - z) H + z c,  c = act(before_act)
    d_update = dh * (c - H) * z * (1 - z)
    d_reset = (d_candidate @ weights[f"Wh{layer}"].T) * H * r * (1 - r)  # before_act contains (H * r) Wh
    gradients = {
        f"Wh{layer}": (H * r).T @ d_candidate,
        f"Whr{layer}": H.T @ d_reset,
        f"Whz{layer}": H.T @ d_update,
        f"Bh{layer}": d_candidate.sum(axis=0),
        f"Br{layer}": d_reset.sum(axis=0),
        f"Bz{layer}": d_update.sum(axis=0),
    }
    return (d_candidate, d_reset, d_update), gradients


# --- The model ------------------------------------------------------------------------------------------------------


class NumpyGRU4Rec:
    """GRU4Rec with the constructor arguments of the 2016 release, and `seed` and `dtype` ('float32' or 'float64').

    `adapt` is 'adagrad', 'rmsprop' or None (or 'none': plain descent). After `fit`, with K the number of mini-batches
    of all epochs: `weights` (Wx0, Wr0, Wz0, Wh0, Whr0, Whz0, Bh0, Br0, Bz0, ..., Wy, By), `acc` and `vel` (empty
    without adaptive rate or momentum), `X` and `Y` (K, B) input and target items, `costs` (K,), `epoch_losses`, and
    `hidden`, one (K, B, H) array per layer: the state right after each mini-batch. The later release, `numpy_later`,
    replaces some methods; with it `M` (K,) are the lanes of each mini-batch, and places that no lane has are -1 in `X`
    and `Y`, and 0 in `hidden`.
    """

    def __init__(
        self, layers, n_epochs=10, batch_size=50, dropout_p_hidden=0.4, learning_rate=0.05, momentum=0.0,
        adapt="adagrad", decay=0.9, grad_cap=0, sigma=0, init_as_normal=False, reset_after_session=True, loss="top1",
        hidden_act="tanh", final_act=None, train_random_order=False, lmbd=0.0, session_key="SessionId",
        item_key="ItemId", time_key="Time", seed=42, dtype="float64",
    ):
        self.layers, self.n_epochs, self.batch_size = layers, n_epochs, batch_size
        self.dropout_p_hidden, self.learning_rate, self.momentum = dropout_p_hidden, learning_rate, momentum
        self.adapt = None if adapt == "none" else adapt
        self.decay, self.grad_cap, self.lmbd = decay, grad_cap, lmbd
        self.sigma, self.init_as_normal, self.seed, self.dtype = sigma, init_as_normal, seed, np.dtype(dtype)
        self.reset_after_session, self.train_random_order = reset_after_session, train_random_order
        self.loss, self.hidden_act = loss, hidden_act
        # Scores of the pairwise losses go through tanh unless told otherwise. Cross-entropy has a softmax on top, and
        # below it either tanh or nothing.
        if loss == "cross-entropy":
            self.final_act = "tanh" if final_act == "tanh" else "linear"
        else:
            self.final_act = final_act or "tanh"
        self.session_key, self.item_key, self.time_key = session_key, item_key, time_key
        self.dropouts = [dropout_p_hidden] * len(layers)  # of each mask

    # Data

    def sorted_events(self, frame):
        """Sessions in SessionId order, events in Time order, ties as in the frame: (items, session lengths)."""
        rows = list(zip(frame[self.session_key], frame[self.time_key], frame[self.item_key]))
        rows.sort(key=lambda row: row[:2])  # stable
        lengths = {}
        for session, _, _ in rows:
            lengths[session] = lengths.get(session, 0) + 1
        return np.array([self.item_index[item] for _, _, item in rows]), list(lengths.values())

    def session_order(self, frame, rng):
        """Sessions, numbered by sorted id, in the order in which an epoch uses them."""
        n_sessions = frame[self.session_key].nunique()
        return rng.permutation(n_sessions) if self.train_random_order else range(n_sessions)

    def fewest_lanes(self):
        """Lanes without which an epoch ends."""
        return self.batch_size

    # Initialisation

    def initial_matrix(self, rng, rows, columns):
        """U(-x, x) or N(0, x^2), x = `sigma` or sqrt(6 / (rows + columns)); drawn in float64, stored in float32."""
        x = self.sigma or np.sqrt(6.0 / (rows + columns))
        draws = rng.randn(rows, columns) * x if self.init_as_normal else rng.rand(rows, columns) * 2 * x - x
        return draws.astype("float32").astype(self.dtype)

    def initialise(self, n_items, rng):
        """Weights, accumulators and velocities before training."""
        self.weights = self.initial_weights(n_items, rng)
        self.acc = {name: np.zeros_like(p) for name, p in self.weights.items()} if self.adapt else {}
        self.vel = {name: np.zeros_like(p) for name, p in self.weights.items()} if self.momentum > 0 else {}

    def initial_weights(self, n_items, rng, n_inputs=None):
        """Weights before training; the order of the draws is part of the semantics.

        `n_inputs`: rows of Wx0, Wr0 and Wz0, one for each item unless something stands in between.
        """
        weights = {}
        for layer, units in enumerate(self.layers):
            n_below = self.layers[layer - 1] if layer > 0 else n_items if n_inputs is None else n_inputs
            for name in ("Wx", "Wr", "Wz", "Wh", "Whr", "Whz"):
                rows = n_below if name in ("Wx", "Wr", "Wz") else units
                weights[f"{name}{layer}"] = self.initial_matrix(rng, rows, units)
            for name in ("Bh", "Br", "Bz"):
                weights[f"{name}{layer}"] = np.zeros(units, self.dtype)
        weights["Wy"] = self.initial_matrix(rng, n_items, self.layers[-1])
        weights["By"] = np.zeros(n_items, self.dtype)
        return weights

    # One mini-batch

    def input_products(self, layer, x):
        """(Wx x, Wr x, Wz x): rows of the matrices for item indices x (section 3.1, 1-of-N input), products above."""
        matrices = [self.weights[f"{name}{layer}"] for name in ("Wx", "Wr", "Wz")]
        return [W[x] if x.ndim == 1 else x @ W for W in matrices]

    def loss_of(self, y):
        """Loss of a mini-batch from its activated scores, and its derivative."""
        return losses[self.loss](y)

    def correction(self, columns, n_targets):
        """What is taken off the scores before the activation: nothing in 2016."""
        return 0

    def gradients(self, x, columns, hidden, masks):
        """Loss of one mini-batch, and its derivatives.

        `x`, `columns`: item indices of the inputs (B,), and of the scored columns, the targets (B,) first; `hidden`:
        previous state of each layer, (B, H); `masks`: what dropout multiplies the new state of each layer by,
        mask / (1 - p). The dropped state is what the next layer and the scores see, and what is carried to the next
        mini-batch. `x` may also be what the first layer's matrices are multiplied by, (B, width).
        Returns (loss, new states, dense, rows, derivative by such an `x`). `dense[name]` has the shape of the weight;
        `rows[name]` = (items, G), where G[j] is the derivative by the row of occurrence j: an item that occurs twice
        has two entries.
        """
        # Forwards
        below, kept = [], []
        for layer, H in enumerate(hidden):
            below.append(x)  # what goes into the layer
            h, needed = gru_forward(self.input_products(layer, x), H, self.weights, layer, self.hidden_act)
            x = h * masks[layer]
            kept.append(needed)
        Wy, By = self.weights["Wy"][columns], self.weights["By"][columns]
        # section 3.1.2: lane b against the targets of all lanes
        before_act = x @ Wy.T + By - self.correction(columns, len(x))
        act, derivative = activation(self.final_act)
        value, d_scores = self.loss_of(act(before_act))

        # Backwards
        d_before = d_scores * derivative(before_act)
        rows = {"Wy": (columns, d_before.T @ x), "By": (columns, d_before.sum(axis=0))}
        dense = {}
        d_state = d_before @ Wy
        for layer in reversed(range(len(hidden))):
            dh = d_state * masks[layer]
            d_products, recurrent = gru_backward(dh, kept[layer], self.weights, layer, self.hidden_act)
            dense.update(recurrent)
            names = [f"{name}{layer}" for name in ("Wx", "Wr", "Wz")]
            if below[layer].ndim == 1:
                rows.update({name: (below[layer], d) for name, d in zip(names, d_products)})
            else:
                dense.update({name: below[layer].T @ d for name, d in zip(names, d_products)})
                d_state = sum(d @ self.weights[name].T for name, d in zip(names, d_products))
        return value, [*below[1:], x], dense, rows, d_state

    def cap(self, dense, rows):
        """Scale all gradients by grad_cap / norm if their joint norm reaches `grad_cap` (0 switches it off)."""
        squares = [(g**2).sum() for g in dense.values()]
        squares += [(G**2).sum() for _, G in rows.values()]  # per occurrence: repeated items are not summed first
        norm = np.sqrt(sum(squares))
        if not 0 < self.grad_cap <= norm:
            return dense, rows
        scale = self.grad_cap / norm
        return {n: g * scale for n, g in dense.items()}, {n: (items, G * scale) for n, (items, G) in rows.items()}

    def adapted(self, g, acc):
        """The accumulator with g in it, and g over its root: acc <- v1 acc + v2 g^2, g <- g / sqrt(acc + 1e-6)."""
        if self.adapt is None:
            return None, g
        v1, v2 = (1, 1) if self.adapt == "adagrad" else (self.decay, 1 - self.decay)
        acc = v1 * acc + v2 * g**2
        return acc, g / np.sqrt(acc + EPSILON)

    def update_dense(self, name, g):
        """A weight that every mini-batch uses whole: p <- p + vel with vel <- m vel - lr (g + lambda p)."""
        p = self.weights[name]
        acc, g = self.adapted(g, self.acc.get(name))
        if self.adapt:
            self.acc[name] = acc
        step = -self.learning_rate * (g + self.lmbd * p)
        if self.momentum > 0:
            step = self.vel[name] = self.momentum * self.vel[name] + step
        self.weights[name] = p + step

    def update_rows(self, name, items, G):
        """A weight of which a mini-batch uses some rows: one update per occurrence j of an item, not per item.

        Every occurrence starts from the row, accumulator and velocity as they were before the mini-batch:
        a_j = v1 acc + v2 g_j^2, d_j = lr (g_j / sqrt(a_j + 1e-6) + lambda row), v_j = m vel - d_j. The row moves by
        the sum of all v_j (of all -d_j without momentum). The last v_j is stored, and with rmsprop the last a_j, but
        Adagrad's accumulator takes every g_j^2.
        """
        row_before = self.weights[name].copy()
        acc_before = self.acc[name].copy() if self.adapt else {}
        vel_before = self.vel[name].copy() if self.momentum > 0 else {}
        for j, item in enumerate(items):
            a, g = self.adapted(G[j], acc_before[item] if self.adapt else None)
            if self.adapt == "adagrad":
                self.acc[name][item] += G[j] ** 2
            elif self.adapt == "rmsprop":
                self.acc[name][item] = a
            step = -self.learning_rate * (g + self.lmbd * row_before[item])
            if self.momentum > 0:
                step = self.momentum * vel_before[item] + step
                self.vel[name][item] = step
            self.weights[name][item] += step

    def train_minibatch(self, inputs, columns, hidden, masks):
        """One step of training: (loss before the update, new states)."""
        value, states, dense, rows, _ = self.gradients(inputs, columns, hidden, masks)
        dense, rows = self.cap(dense, rows)
        for name, g in dense.items():
            self.update_dense(name, g)
        for name in rows:  # only the rows that the mini-batch uses
            self.update_rows(name, *rows[name])
        return value, states

    # Training and scoring

    def masks_of(self, dropout_masks, k, n_lanes):
        """Return the factors of dropout in mini-batch k, mask / (1 - p) or 1."""
        given, masks = list(dropout_masks or []), []
        for p in self.dropouts:
            mask = np.asarray(given.pop(0), self.dtype) if p > 0 else None
            masks.append(1 if mask is None else (mask if mask.ndim == 2 else mask[k])[:n_lanes] / (1 - p))
        return masks

    def fit(self, frame, dropout_masks=None, sampled_negatives=None):
        """Train on `frame`.

        `dropout_masks`: one 0/1 array for each probability above 0, (B, H) for every mini-batch, or (K, B, H); with
        fewer lanes the first rows count. `sampled_negatives`: item indices (K, n_sample), columns after the targets.
        """
        # Item indices: order of first appearance in the frame as given, before it is sorted.
        self.item_index = {item: k for k, item in enumerate(dict.fromkeys(frame[self.item_key]))}
        items, session_lengths = self.sorted_events(frame)
        self.counts = np.bincount(items).astype(self.dtype)
        rng = np.random.RandomState(self.seed)
        self.initialise(len(self.item_index), rng)

        self.epoch_losses, self.costs, X, Y, after = [], [], [], [], []
        for _ in range(self.n_epochs):
            hidden = self.no_states(self.batch_size)
            order, first = self.session_order(frame, rng), len(self.costs)
            for inputs, targets, starts, stays in minibatches_to_the_end(
                    session_lengths, self.batch_size, order, self.fewest_lanes()):
                k, columns = len(self.costs), items[targets]
                if sampled_negatives is not None:
                    columns = np.concatenate([columns, sampled_negatives[k]])
                hidden = [H[stays] for H in hidden]
                if self.reset_after_session:
                    hidden = [np.where(starts[:, None], 0, H) for H in hidden]
                self.starts = starts
                cost, hidden = self.train_minibatch(
                    items[inputs], columns, hidden, self.masks_of(dropout_masks, k, len(inputs)))
                X.append(items[inputs])
                Y.append(items[targets])
                self.costs.append(cost)
                after.append(hidden)
            self.epoch_losses.append(float(np.average(self.costs[first:], weights=[len(x) for x in X[first:]])))
        self.M, self.costs = np.array([len(x) for x in X]), np.array(self.costs)
        self.X, self.Y = self.padded(X, -1), self.padded(Y, -1)
        self.hidden = [self.padded(states, 0) for states in zip(*after)]
        return self

    def padded(self, arrays, value):
        """Arrays with a row for each lane that is left as one array with B."""
        result = np.full((len(arrays), self.batch_size, *arrays[0].shape[1:]), value, arrays[0].dtype)
        for place, array in zip(result, arrays):
            place[:len(array)] = array
        return result

    def scores(self, frame):
        """Activated scores of all items after every event that has a successor in its session: (predictions, N).

        Rows in (SessionId, Time) order, columns in item index order. Hidden state zero at session start; no dropout.
        """
        items, session_lengths = self.sorted_events(frame)
        act = activation(self.final_act)[0]
        rows, start = [], 0
        for length in session_lengths:
            hidden = self.no_states(1)
            for event in range(start, start + length - 1):
                top, hidden = self.after_event(items[start : event + 1], hidden)
                r_hat = act(top @ self.weights["Wy"].T + self.weights["By"])
                rows.append(softmax(r_hat)[0] if self.loss == "cross-entropy" else r_hat[0])
            start += length
        return np.array(rows)

    def no_states(self, n_lanes):
        """States before the first event."""
        return [np.zeros((n_lanes, units), self.dtype) for units in self.layers]

    def after_event(self, prefix, hidden):
        """The state that scores are computed from, and all states, after the last event of a session's prefix."""
        x, states = prefix[-1:], []
        for layer, H in enumerate(hidden):
            x, _ = gru_forward(self.input_products(layer, x), H, self.weights, layer, self.hidden_act)
            states.append(x)
        return x, states
