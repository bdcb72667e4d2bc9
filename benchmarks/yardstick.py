"""A yardstick: one training step of a GRU4Rec, written by hand in Numba.

One layer, TOP1, tanh, adagrad, dropout; the weights lie as in the model ([h | r | z] side by side in the input matrix,
three recurrent matrices).  Products are BLAS calls, everything between them is fused into as few loops as the data
flow permits, rows are updated in place.  It is not part of the package: it shows what careful work by hand
reaches, and the compiled graph, whose loops are made of vectors more often, is faster by now (README.md beside this
file).
"""
import numpy as np
from numba import njit

from gru4rec_pytensor.backends.numba_ops import sigmoid, tanh

EPSILON = np.float32(1e-6)
ONE = np.float32(1)
FLAGS = {'contract', 'arcp', 'reassoc', 'nsz'}


@njit(fastmath=FLAGS, error_model='numpy')
def gates_forward(W0, B0, item, starts, H, a_r, a_z, H0, r, z, Hr):
    """Reset and update gate, eqs. 3 and 5, and r * h."""
    B, n = H.shape
    bias_r, bias_z = B0[n:2 * n], B0[2 * n:]
    for b in range(B):
        x_r, x_z = W0[item[b], n:2 * n], W0[item[b], 2 * n:]
        keep = np.float32(0) if starts[b] else ONE
        # Two loops over few arrays each: for many arrays LLVM would have to check too many pairs for overlap.
        for k in range(n):
            h = keep * H[b, k]
            H0[b, k] = h
            r[b, k] = gate = sigmoid(a_r[b, k] * keep + x_r[k] + bias_r[k])
            Hr[b, k] = h * gate
        for k in range(n):
            z[b, k] = sigmoid(a_z[b, k] * keep + x_z[k] + bias_z[k])


@njit(fastmath=FLAGS, error_model='numpy')
def state_forward(W0, B0, item, a_c, mask, scale, H0, z, c, H):
    """Candidate and new state, eqs. 4 and 2, dropout."""
    B, n = H.shape
    for b in range(B):
        x = W0[item[b]]
        for k in range(n):
            candidate = tanh(a_c[b, k] + x[k] + B0[k])
            c[b, k] = candidate
            H[b, k] = (H0[b, k] + z[b, k] * (candidate - H0[b, k])) * (scale if mask[b, k] else np.float32(0))


@njit(fastmath=FLAGS, error_model='numpy')
def top1_loss(raw, bias, target, scores, d_scores):
    """TOP1 and its derivative by the raw scores; `raw` (B, B) is overwritten by nothing, `scores` holds tanh."""
    B = len(raw)
    total = np.float32(0)
    weight = ONE / np.float32(B * B)
    for i in range(B):
        for j in range(B):
            scores[i, j] = tanh(raw[i, j] + bias[target[j]])
        own = scores[i, i]
        row, d_own = np.float32(0), np.float32(0)
        for j in range(B):
            s = scores[i, j]
            above, square = sigmoid(s - own), sigmoid(s * s)
            row += above + square
            d_above = above * (ONE - above)
            d_own += d_above
            d_scores[i, j] = weight * (d_above + np.float32(2) * s * square * (ONE - square)) * (ONE - s * s)
        total += row - sigmoid(own * own)
        # on the diagonal: the squares cancel, and so does sigmoid(0)'s own share
        d_scores[i, i] = -weight * (d_own - np.float32(0.25)) * (ONE - own * own)
    return total * weight


@njit(fastmath=FLAGS, error_model='numpy')
def state_backward(dH, mask, scale, H0, z, c, d_c, d_z):
    """Gradients through dropout, the new state and the candidate's tanh."""
    B, n = dH.shape
    for b in range(B):
        for k in range(n):
            g = dH[b, k] * (scale if mask[b, k] else np.float32(0))
            d_z[b, k] = g * (c[b, k] - H0[b, k]) * z[b, k] * (ONE - z[b, k])
            d_c[b, k] = g * z[b, k] * (ONE - c[b, k] * c[b, k])


@njit(fastmath=FLAGS, error_model='numpy')
def reset_backward(d_Hr, H0, r, d_r):
    B, n = d_Hr.shape
    for b in range(B):
        for k in range(n):
            d_r[b, k] = d_Hr[b, k] * H0[b, k] * r[b, k] * (ONE - r[b, k])


@njit(fastmath=FLAGS, error_model='numpy')
def dense_adagrad(W, acc, g, lr):
    for i in range(len(W)):
        for k in range(W.shape[1]):
            acc[i, k] += g[i, k] * g[i, k]
            W[i, k] -= lr * g[i, k] / np.sqrt(acc[i, k] + EPSILON)


@njit(fastmath=FLAGS, error_model='numpy')
def row_step(g, old, step, square, lr):
    """Square and step of one occurrence of a row, against the old accumulator."""
    for k in range(len(g)):
        square[k] = g[k] * g[k]
        step[k] = lr * g[k] / np.sqrt(old[k] + square[k] + EPSILON)


@njit(fastmath=FLAGS, error_model='numpy')
def update_row(W, acc, step, square):
    for k in range(len(W)):
        W[k] -= step[k]
        acc[k] += square[k]


@njit(fastmath=FLAGS, error_model='numpy')
def add_up(total, row):
    for k in range(len(row)):
        total[k] += row[k]


@njit(fastmath=FLAGS, error_model='numpy')
def input_adagrad(W0, acc, item, d_c, d_r, d_z, B0, acc_B0, step, square, lr):
    """Rows of the input matrix, once per occurrence against the old accumulator, and the gates' biases."""
    B, n = d_c.shape
    gradient = np.zeros(3 * n, dtype=np.float32)
    for b in range(B):
        old = acc[item[b]]
        row_step(d_c[b], old[:n], step[b, :n], square[b, :n], lr)
        row_step(d_r[b], old[n:2 * n], step[b, n:2 * n], square[b, n:2 * n], lr)
        row_step(d_z[b], old[2 * n:], step[b, 2 * n:], square[b, 2 * n:], lr)
        add_up(gradient[:n], d_c[b])
        add_up(gradient[n:2 * n], d_r[b])
        add_up(gradient[2 * n:], d_z[b])
    for b in range(B):
        update_row(W0[item[b]], acc[item[b]], step[b], square[b])
    for k in range(3 * n):
        acc_B0[k] += gradient[k] * gradient[k]
        B0[k] -= lr * gradient[k] / np.sqrt(acc_B0[k] + EPSILON)


@njit(fastmath=FLAGS, error_model='numpy')
def output_adagrad(Wy, acc_Wy, By, acc_By, target, dWy, d_scores, step, square, lr):
    B, n = dWy.shape
    dBy = np.zeros(B, dtype=np.float32)
    for i in range(B):
        for j in range(B):
            dBy[j] += d_scores[i, j]
    for b in range(B):
        row_step(dWy[b], acc_Wy[target[b]], step[b, :n], square[b, :n], lr)
        square[b, n] = dBy[b] * dBy[b]
        step[b, n] = lr * dBy[b] / np.sqrt(acc_By[target[b]] + square[b, n] + EPSILON)
    for b in range(B):
        update_row(Wy[target[b]], acc_Wy[target[b]], step[b, :n], square[b, :n])
        By[target[b]] -= step[b, n]
        acc_By[target[b]] += square[b, n]


@njit(fastmath=FLAGS, error_model='numpy')
def run(items, targets, starts, masks, scale, lr, W0, B0, Wh, Whr, Whz, Wy, By,
        acc_W0, acc_B0, acc_Wh, acc_Whr, acc_Whz, acc_Wy, acc_By, H, losses):
    """K training steps in place; `items, targets, starts` (K, B), `masks` (K, B, H), `H` (B, H), `losses` (K,)."""
    B, n = H.shape
    H0, Hr, sampled = np.empty((B, n), np.float32), np.empty((B, n), np.float32), np.empty((B, n), np.float32)
    r, z, c = np.empty((B, n), np.float32), np.empty((B, n), np.float32), np.empty((B, n), np.float32)
    d_r, d_z, d_c = np.empty((B, n), np.float32), np.empty((B, n), np.float32), np.empty((B, n), np.float32)
    scores, d_scores = np.empty((B, B), np.float32), np.empty((B, B), np.float32)
    step, square = np.empty((B, 3 * n), np.float32), np.empty((B, 3 * n), np.float32)
    bias, acc_bias = B0.reshape(-1), acc_B0.reshape(-1)
    for t in range(len(items)):
        item, target = items[t], targets[t]
        for b in range(B):
            if starts[t, b]:
                H[b] = 0
            sampled[b] = Wy[target[b]]
        gates_forward(W0, bias, item, starts[t], H, np.dot(H, Whr), np.dot(H, Whz), H0, r, z, Hr)
        state_forward(W0, bias, item, np.dot(Hr, Wh), masks[t], scale, H0, z, c, H)
        losses[t] = top1_loss(np.dot(H, sampled.T), By, target, scores, d_scores)
        state_backward(np.dot(d_scores, sampled), masks[t], scale, H0, z, c, d_c, d_z)
        reset_backward(np.dot(d_c, Wh.T), H0, r, d_r)
        output_adagrad(Wy, acc_Wy, By, acc_By, target, np.dot(d_scores.T, H), d_scores, step, square, lr)
        dense_adagrad(Wh, acc_Wh, np.dot(Hr.T, d_c), lr)
        dense_adagrad(Whr, acc_Whr, np.dot(H0.T, d_r), lr)
        dense_adagrad(Whz, acc_Whz, np.dot(H0.T, d_z), lr)
        input_adagrad(W0, acc_W0, item, d_c, d_r, d_z, bias, acc_bias, step, square, lr)
