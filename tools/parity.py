#!/usr/bin/env python3
"""Tiny random models of transformers, with everything they compute, as fixtures of tests/unit/parity_test.cpp.

    tools/parity.py make tests/fixtures     writes FOLDER/{t5_1_0,t5_1_1,switch}
    tools/parity.py check EXPORT FIXTURE    loads EXPORT (of flanmoe-convert to-hf) in transformers and compares its
                                            logits with those of FIXTURE

Needs the pip packages torch and transformers; made with torch 2.5.1 and transformers 4.46.3 (transformers 5 ignores the
capacity of SwitchTransformers and takes its z-loss of probabilities). Building, running and testing flanmoe needs no Python.
"""
import json
import math
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoModelForSeq2SeqLM, SwitchTransformersConfig,
                          SwitchTransformersForConditionalGeneration, T5Config, T5ForConditionalGeneration)
from transformers.models.switch_transformers import modeling_switch_transformers as switch_module
from transformers.models.t5.modeling_t5 import T5Attention

PAD, EOS = 0, 1
SIZES = dict(vocab_size=97, d_model=16, d_kv=5, d_ff=24, num_heads=3, dropout_rate=0.0,
             pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD)


def randomize(model, generator, factors):
    """Every parameter away from its initial value, so that each one matters."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "layer_norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif "relative_attention_bias" in name or "shared" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / math.sqrt(p.shape[1]))
            for part, factor in factors.items():
                if part in name:
                    p.mul_(factor)


def random_rows(generator, lengths):
    rows = []
    for length in lengths:
        ids = torch.randint(2, SIZES["vocab_size"], (length,), generator=generator).tolist()
        rows.append(ids[:-1] + [EOS])
    return rows


def padded(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def run(model, inputs, labels, z_loss):
    """Logits of the real target tokens, loss, and the gradients of the loss."""
    ids = padded(inputs, PAD)
    kwargs = {"output_router_logits": True} if isinstance(model, SwitchTransformersForConditionalGeneration) else {}
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=(padded(inputs, -1) != -1).long(), labels=padded(labels, -100), **kwargs)
    logits = torch.cat([out.logits[i, :len(row)] for i, row in enumerate(labels)])
    loss = out.loss + z_loss * (torch.logsumexp(logits, -1) ** 2).mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return logits.detach(), loss.item(), gradients


def least_margin(values):
    best = torch.topk(values, 2, dim=-1).values
    return (best[..., 0] - best[..., 1]).min().item()


def generate(model, inputs, count):
    """Greedy continuations without EOS, and the least lead of a chosen token over the next one."""
    ids = padded(inputs, PAD)
    out = model.generate(input_ids=ids, attention_mask=(padded(inputs, -1) != -1).long(), max_new_tokens=count,
                         do_sample=False, num_beams=1, output_scores=True, return_dict_in_generate=True)
    rows, margin = [], math.inf
    for i, row in enumerate(out.sequences.tolist()):
        row = row[1:]
        ended = row.index(EOS) if EOS in row else len(row)
        for step in range(min(ended + 1, len(row))):
            margin = min(margin, least_margin(out.scores[step][i]))
        rows.append(row[:ended])
    return rows, margin


def is_telling(outputs, count):
    """Some answers end early, some do not, and they do not repeat one token."""
    lengths = {len(o) for o in outputs}
    return min(lengths) < count and max(lengths) > 3 and len({t for o in outputs for t in o}) > 5


def buckets(config, bidirectional):
    """Bucket of every distance query - key from -160 to 160."""
    distance = torch.arange(-160, 161)
    return T5Attention._relative_position_bucket(-distance, bidirectional, config.relative_attention_num_buckets,
                                                 config.relative_attention_max_distance).tolist()


def save(folder, model, inputs, labels, extra, results, dtype=torch.float32, **kwargs):
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, **kwargs)
    model.to(torch.float32)
    os.remove(os.path.join(folder, "generation_config.json"))
    case = {"inputs": inputs, "labels": labels, **extra}
    for name, (logits, loss, gradients) in results.items():
        save_file({"logits": logits.contiguous()}, os.path.join(folder, name + "logits.safetensors"))
        if gradients is not None:
            save_file(gradients, os.path.join(folder, name + "gradients.safetensors"))
        case[name + "loss"] = loss
    with open(os.path.join(folder, "case.json"), "w") as file:
        file.write("{" + ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in case.items()) + "}\n")
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)


def make_t5(folder, name, config, first_seed, lengths, z_loss, factors, **kwargs):
    for seed in range(first_seed, first_seed + 10000):
        generator = torch.Generator().manual_seed(seed)
        model = T5ForConditionalGeneration(config).eval()
        randomize(model, generator, factors)
        inputs, labels = random_rows(generator, lengths[0]), random_rows(generator, lengths[1])
        outputs, margin = generate(model, inputs, 12)
        if margin > 1e-3 and is_telling(outputs, 12):
            break
    else:
        raise SystemExit("no seed gives telling answers")
    extra = {"z_loss": z_loss, "generated": outputs, "seed": seed,
             "buckets_both_ways": buckets(config, True), "buckets_causal": buckets(config, False)}
    save(os.path.join(folder, name), model, inputs, labels, extra, {"": run(model, inputs, labels, z_loss)}, **kwargs)


class PaperSparseMLP(switch_module.SwitchTransformersSparseMLP):
    """What transformers does otherwise than the paper, put right: a token that finds its expert full gets nothing from the
    layer (transformers: its own input times its probability), and the balance loss counts the expert it asked for
    (transformers: expert 0)."""

    def forward(self, hidden_states):
        mask, probabilities, logits = self.router(hidden_states)
        out = torch.zeros_like(hidden_states)
        for idx in range(mask.shape[-1]):
            chosen = mask[:, :, idx].bool()
            out[chosen] = self.experts[f"expert_{idx}"](hidden_states[chosen])
        return probabilities * out, (logits, torch.argmax(logits, dim=-1))


def sparse_layers(model):
    return [m for m in model.modules() if isinstance(m, switch_module.SwitchTransformersSparseMLP)]


def with_capacity(model, capacity, cls):
    for layer in sparse_layers(model):
        layer.router.expert_capacity = capacity
        layer.__class__ = cls


def routing_margin(model, inputs, labels):
    out = model(input_ids=padded(inputs, PAD), labels=padded(labels, -100), output_router_logits=True)
    routers = [r[0] for r in (*out.encoder_router_logits, *out.decoder_router_logits) if r[0].dim() == 3]
    return min(least_margin(torch.softmax(r, -1)) for r in routers)


def make_switch(folder, config):
    capacity = 3
    transformers_mlp = switch_module.SwitchTransformersSparseMLP
    for seed in range(10000):
        generator = torch.Generator().manual_seed(seed)
        model = SwitchTransformersForConditionalGeneration(config).eval()
        randomize(model, generator, {"classifier": 2.0, "shared": 0.7})
        model.to(torch.bfloat16).to(torch.float32)  # as the file will hold them
        # transformers gives padding slots and counts it in the losses; rows of one length have none.
        inputs, labels = random_rows(generator, [14] * 3), random_rows(generator, [11] * 3)
        if routing_margin(model, inputs, labels) < 1e-3:
            continue
        outputs, margin = generate(model, inputs, 12)
        if margin > 1e-3 and len({t for o in outputs for t in o}) > 5:
            break
    else:
        raise SystemExit("no seed gives telling answers")
    results = {"": run(model, inputs, labels, 0.0)}
    with_capacity(model, capacity, PaperSparseMLP)
    results["drops_paper_"] = run(model, inputs, labels, 0.0)
    with_capacity(model, capacity, transformers_mlp)
    logits, loss, _ = run(model, inputs, labels, 0.0)
    results["drops_transformers_"] = (logits, loss, None)
    with_capacity(model, config.expert_capacity, transformers_mlp)
    extra = {"z_loss": 0.0, "generated": outputs, "seed": seed, "drops_capacity": capacity}
    save(os.path.join(folder, "switch"), model, inputs, labels, extra, results, dtype=torch.bfloat16)


def make(folder):
    t5_1_0 = T5Config(**SIZES, num_layers=2, num_decoder_layers=3, feed_forward_proj="relu",
                      relative_attention_num_buckets=8, relative_attention_max_distance=20)
    make_t5(folder, "t5_1_0", t5_1_0, 1672, ([14, 5, 23], [9, 16, 4]), 0.0, {"shared": 0.7})
    t5_1_1 = T5Config(**SIZES, num_layers=2, num_decoder_layers=2, feed_forward_proj="gated-gelu",
                      tie_word_embeddings=False, layer_norm_epsilon=1e-5)
    make_t5(folder, "t5_1_1", t5_1_1, 13, ([38, 6, 17, 9], [5, 26, 3, 12]), 0.01, {"shared": 0.5},
            max_shard_size="20KB")
    make_switch(folder, SwitchTransformersConfig(
        **SIZES, num_layers=2, num_decoder_layers=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        num_experts=4, router_aux_loss_coef=0.02, router_z_loss_coef=0.003, relative_attention_num_buckets=8,
        relative_attention_max_distance=20))


def check(export, fixture):
    with open(os.path.join(fixture, "case.json")) as file:
        case = json.load(file)
    model = AutoModelForSeq2SeqLM.from_pretrained(export, torch_dtype=torch.float32).eval()
    logits, loss, _ = run(model, case["inputs"], case["labels"], case["z_loss"])
    expected = load_file(os.path.join(fixture, "logits.safetensors"))["logits"]
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    print(f"{type(model).__name__} of {export}: logits differ by {difference:.1e} of the largest, "
          f"loss {loss:.7f}, expected {case['loss']:.7f}")
    return 0 if difference < 2e-5 else 1


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "make":
        make(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[1] == "check":
        sys.exit(check(sys.argv[2], sys.argv[3]))
    else:
        sys.exit(__doc__)
