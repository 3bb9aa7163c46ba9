#!/usr/bin/env python3
"""Writes tests/fixtures/palm_*.json: tiny decoder-only models with weights, logits, loss and all gradients.

    python3 tools/palm_fixture.py tests/fixtures

The models are written here in plain PyTorch (pip package torch; made with 2.5.1) from the formulas of the papers, in
double precision: PaLM (Chowdhery et al. 2022) for the block, Su et al. 2021 for rotary positions, Fedus et al. 2021 for
the balance loss. Nothing of flanmoe is used; only names and shapes of tensors agree. tests/mpi/palm_parity_test.cpp
compares flanmoe with the fixtures; neither building nor testing needs Python.
"""
import json
import math
import sys

import torch

torch.set_default_dtype(torch.float64)


def norm(x, scale, m):
    if m["norm"] == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + m["norm_epsilon"]) * scale


def rotate(x, places, base):  # x: tokens, heads, K
    half = x.shape[-1] // 2
    angle = places[:, None, None] * base ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def attention(y, w, name, m, seen, places):
    heads, kv, width = m["heads"], m["kv_heads"] or m["heads"], m["head_width"]
    q = rotate((y @ w[name + "query"]).view(-1, heads, width), places, m["rotary_base"])
    k = rotate((y @ w[name + "key"]).view(-1, kv, width), places, m["rotary_base"]).repeat_interleave(heads // kv, 1)
    v = (y @ w[name + "value"]).view(-1, kv, width).repeat_interleave(heads // kv, 1)
    scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(width)
    p = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("hqk,khc->qhc", p, v).reshape(-1, heads * width) @ w[name + "output"]


def mlp(y, gate, up, down, m):
    gelu = torch.nn.functional.gelu(y @ gate, approximate="tanh")
    return ((torch.nn.functional.silu(y @ gate) if m["activation"] == "gated_swish" else gelu) * (y @ up)) @ down


def experts(y, w, name, m, rows):
    """Top-k without capacity; the balance loss of Switch with all k choices, each row a group."""
    moe = m["moe"]
    p = (y @ w[name + "router"]).softmax(-1)
    weight, choice = p.topk(moe["top_k"])
    out = torch.zeros_like(y)
    for e in range(moe["experts"]):
        share = (weight * (choice == e)).sum(-1, keepdim=True)
        out = out + share * mlp(y, *(w[name + f"expert_{x}"][e] for x in ("gate", "up", "down")), m)
    balance = 0
    for r in rows.unique():
        f = torch.stack([(choice[rows == r] == e).sum() / (rows == r).sum() for e in range(moe["experts"])])
        balance = balance + moe["experts"] * (f * p[rows == r].mean(0)).sum()
    return out, moe["balance_coefficient"] * balance / len(rows.unique())


def loss_of(m, w, segments):
    tokens, places, segment, prefix, rows, at, targets = [], [], [], [], [], [], []
    for s, (row, inputs, target) in enumerate(segments):
        sequence = inputs + target
        for i, token in enumerate([0] + sequence[:-1]):  # shifted right
            if i >= len(inputs):
                at.append(len(tokens))
                targets.append(sequence[i])
            tokens.append(token), places.append(i), segment.append(s), rows.append(row)
            prefix.append(i <= len(inputs))
    places, segment, prefix, rows = (torch.tensor(x) for x in (places, segment, prefix, rows))
    seen = (segment[:, None] == segment) & ((places[:, None] >= places) | (m["attention"] == "prefix") & prefix)
    x, auxiliary, sparse = w["embedding"][tokens], 0, 0
    for l in range(m["decoder_layers"]):
        name = f"decoder/layer_{l:02}/"
        y = norm(x, w[name + "norm"], m)
        if name + "feed_forward/router" in w:
            ffn, loss = experts(y, w, name + "feed_forward/", m, rows)
            auxiliary, sparse = auxiliary + loss, sparse + 1
        else:
            ffn = mlp(y, *(w[name + f"feed_forward/{n}"] for n in ("gate", "up", "down")), m)
        x = x + attention(y, w, name + "self_attention/", m, seen, places) + ffn
    logits = norm(x, w["decoder/final_norm"], m)[at] @ w["embedding"].T / math.sqrt(m["width"])
    z = logits.logsumexp(-1)
    nll = z - logits[torch.arange(len(targets)), targets]
    return logits, (nll + m["z_loss"] * z * z).mean() + auxiliary / max(1, sparse)


def weights_of(m):
    g = torch.Generator().manual_seed(7)
    normal = lambda *shape: torch.randn(*shape, generator=g)
    d, f, q, kv = m["width"], m["hidden"], m["heads"] * m["head_width"], (m["kv_heads"] or m["heads"]) * m["head_width"]
    w = {"embedding": normal(m["vocabulary"], d), "decoder/final_norm": 1 + 0.3 * normal(d)}
    for l in range(m["decoder_layers"]):
        name = f"decoder/layer_{l:02}/"
        w[name + "norm"] = 1 + 0.3 * normal(d)
        for part, rows, cols in (("query", d, q), ("key", d, kv), ("value", d, kv), ("output", q, d)):
            w[name + "self_attention/" + part] = normal(rows, cols) / math.sqrt(rows)
        shapes = {"gate": (d, f), "up": (d, f), "down": (f, d)}
        if m["moe"] and l % 2 == 1:
            w[name + "feed_forward/router"] = normal(d, m["moe"]["experts"])
            shapes = {"expert_" + n: (m["moe"]["experts"], *s) for n, s in shapes.items()}
        for part, shape in shapes.items():
            w[name + "feed_forward/" + part] = normal(*shape) / math.sqrt(shape[-2])
    return {name: x.requires_grad_() for name, x in w.items()}


def write(path, m, segments):
    w = weights_of(m)
    logits, loss = loss_of(m, w, segments)
    loss.backward()
    numbers = lambda x: [float(f"{v:.10g}") for v in x.detach().flatten().tolist()]
    moe = {f"moe.{k}": v for k, v in (m["moe"] or {}).items()}
    deck = {**{f"model.{k}": v for k, v in m.items() if k != "moe"}, **moe}
    fixture = {"made_by": f"tools/palm_fixture.py, torch {torch.__version__.split('+')[0]}",
               "deck": {k: str(v) for k, v in deck.items()},
               "segments": [{"row": r, "input": i, "target": t} for r, i, t in segments],
               "loss": float(loss), "logits": numbers(logits),
               "tensors": {n: {"value": numbers(x), "gradient": numbers(x.grad)} for n, x in w.items()}}
    with open(path, "w") as file:
        file.write(",\n".join(json.dumps(fixture).split(', "')).replace(",\n", ',\n"') + "\n")


def main(folder):
    palm = dict(family="palm", encoder_layers=0, decoder_layers=2, vocabulary=13, width=8, hidden=6, heads=3, kv_heads=1,
                head_width=4, attention="causal", activation="gated_swish", norm="layer", norm_epsilon=1e-6,
                tied_logits="true", rotary_base=10000.0, z_loss=1e-4, moe=None)
    # (row, input with its EOS, target with its EOS); two segments share row 0, and one has no input.
    segments = [(0, [5, 3, 9, 1], [4, 11, 1]), (0, [7, 1], [12, 2, 6, 1]), (1, [], [3, 8, 8, 10, 5])]
    write(f"{folder}/palm_causal.json", palm, segments)
    relative = {**palm, "attention": "prefix", "heads": 4, "kv_heads": 2, "activation": "gated_gelu", "norm": "rms",
                "moe": dict(router="top_k", experts=4, top_k=2, every=2, capacity_factor=0, capacity_factor_eval=0,
                            renormalize="false", balance_coefficient=0.3)}
    write(f"{folder}/palm_prefix_moe.json", relative, segments)


if __name__ == "__main__":
    main(sys.argv[1])
