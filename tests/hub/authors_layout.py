"""Checkpoints in the authors' layout with random weights, and ELIC in plain PyTorch over them.

Written from the published tables of tensors and equations; nothing is taken from the package.
"""

import torch
from torch.nn import functional as F


GROUPS = (4, 4, 4, 4, 8)
TINY = {"n": 16, "groups": GROUPS, "context": (20, 12), "aggregation": (28, 18)}
FULL = {"n": 192, "groups": (16, 16, 32, 64, 192), "context": (224, 128), "aggregation": (640, 512)}


def _layer(state, name, out_channels, in_channels, kernel, generator, *, transposed=False, gain=1.0):
    shape = (in_channels, out_channels) if transposed else (out_channels, in_channels)
    bound = gain * (3 / (in_channels * kernel * kernel)) ** 0.5
    state[f"{name}.weight"] = (2 * torch.rand(*shape, kernel, kernel, generator=generator) - 1) * bound
    state[f"{name}.bias"] = 0.1 * (torch.rand(out_channels, generator=generator) - 0.5)


def _bottleneck(state, name, n, generator, layers=("conv1", "conv2", "conv3")):
    _layer(state, f"{name}.{layers[0]}", n // 2, n, 1, generator)
    _layer(state, f"{name}.{layers[1]}", n // 2, n // 2, 3, generator)
    _layer(state, f"{name}.{layers[2]}", n, n // 2, 1, generator, gain=0.3)


def _attention(state, name, n, generator):
    for branch in ("conv_a", "conv_b"):
        for unit in range(3):
            _bottleneck(state, f"{name}.{branch}.{unit}", n, generator, ("conv.0", "conv.2", "conv.4"))
    _layer(state, f"{name}.conv_b.3", n, n, 1, generator)


def _transforms(state, n, m, generator):
    for layer, (out, inp) in {0: (n, 3), 4: (n, n), 9: (n, n), 13: (m, n)}.items():
        _layer(state, f"g_a.{layer}", out, inp, 5, generator, gain=8.0 if layer == 13 else 1.0)
    for layer, (out, inp) in {1: (n, m), 5: (n, n), 10: (n, n), 14: (3, n)}.items():
        _layer(state, f"g_s.{layer}", out, inp, 5, generator, transposed=True, gain=0.5)
    for layer in (1, 2, 3, 5, 6, 7, 10, 11, 12):
        _bottleneck(state, f"g_a.{layer}", n, generator)
    for layer in (2, 3, 4, 7, 8, 9, 11, 12, 13):
        _bottleneck(state, f"g_s.{layer}", n, generator)
    for name, width in (("g_a.8", n), ("g_a.14", m), ("g_s.0", m), ("g_s.6", n)):
        _attention(state, name, width, generator)


def _entropy_networks(state, n, m, groups, context, aggregation, generator):
    _layer(state, "h_a.0", n, m, 3, generator)
    _layer(state, "h_a.2", n, n, 5, generator)
    _layer(state, "h_a.4", n, n, 5, generator, gain=3.0)
    _layer(state, "h_s.0", n, n, 5, generator, transposed=True)
    _layer(state, "h_s.2", 3 * n // 2, n, 5, generator, transposed=True)
    _layer(state, "h_s.4", 2 * m, 3 * n // 2, 3, generator)
    for k in range(4):
        inp = groups[0] + (groups[k] if k else 0)
        for layer, out in zip((0, 2, 4), (*context, 2 * groups[k + 1]), strict=True):
            _layer(state, f"cc_transforms.{k}.{layer}", out, inp, 5, generator)
            inp = out
    for k, group in enumerate(groups):
        name = f"context_prediction.{k}"
        _layer(state, name, 2 * group, group, 5, generator)
        state[f"{name}.mask"] = (
            (torch.arange(5)[:, None] + torch.arange(5)).remainder(2).float().expand(2 * group, group, 5, 5).clone()
        )
        inp = 2 * m + (2 if k == 0 else 4) * group
        for layer, out in zip((0, 2, 4), (*aggregation, 2 * group), strict=True):
            _layer(state, f"ParamAggregation.{k}.{layer}", out, inp, 1, generator)
            inp = out


def _priors(state, n, generator):
    widths = (1, 3, 3, 3, 3, 1)
    for layer in range(5):
        inp, out = widths[layer], widths[layer + 1]
        state[f"entropy_bottleneck._matrix{layer}"] = torch.rand(n, out, inp, generator=generator) - 0.5
        state[f"entropy_bottleneck._bias{layer}"] = torch.rand(n, out, 1, generator=generator) - 0.5
        if layer < 4:
            state[f"entropy_bottleneck._factor{layer}"] = 0.2 * (torch.rand(n, out, 1, generator=generator) - 0.5)
    quantiles = torch.tensor([-10.0, 0.0, 10.0]).repeat(n, 1, 1)
    quantiles[:, 0, 1] += torch.linspace(-0.4, 0.4, n)
    state["entropy_bottleneck.quantiles"] = quantiles
    state["entropy_bottleneck.target"] = torch.tensor([-21.4164, 0.0, 21.4164])
    state["entropy_bottleneck.likelihood_lower_bound.bound"] = torch.tensor([1e-9])
    for name in ("scale_bound", "likelihood_lower_bound.bound", "lower_bound_scale.bound"):
        state[f"gaussian_conditional.{name}"] = torch.tensor([1e-9 if "likelihood" in name else 0.11])
    state["gaussian_conditional.scale_table"] = torch.tensor([])
    for prior in ("entropy_bottleneck", "gaussian_conditional"):
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            state[f"{prior}.{name}"] = torch.tensor([], dtype=torch.int32)


def codec_state(n, groups, context, aggregation, seed=0):
    """The authors' `state_dict`: 367 parameters and 17 buffers, tables empty as after training."""
    generator, state, m = torch.Generator().manual_seed(seed), {}, sum(groups)
    _transforms(state, n, m, generator)
    _entropy_networks(state, n, m, groups, context, aggregation, generator)
    _priors(state, n, generator)
    return state


def _block(state, prefix, width, mlp, generator):
    def normal(*shape, std):
        return std * torch.randn(*shape, generator=generator)

    state[f"{prefix}attn.in_proj_weight"] = normal(3 * width, width, std=1.5 * width**-0.5)
    state[f"{prefix}attn.in_proj_bias"] = normal(3 * width, std=0.1)
    state[f"{prefix}attn.out_proj.weight"] = normal(width, width, std=width**-0.5)
    state[f"{prefix}attn.out_proj.bias"] = normal(width, std=0.1)
    for name in ("ln_1", "ln_2"):
        state[f"{prefix}{name}.weight"] = 1 + normal(width, std=0.2)
        state[f"{prefix}{name}.bias"] = normal(width, std=0.2)
    state[f"{prefix}mlp.c_fc.weight"] = normal(mlp, width, std=2 * width**-0.5)
    state[f"{prefix}mlp.c_fc.bias"] = normal(mlp, std=0.1)
    state[f"{prefix}mlp.c_proj.weight"] = normal(width, mlp, std=mlp**-0.5)
    state[f"{prefix}mlp.c_proj.bias"] = normal(width, std=0.1)


def neck_state(m, width, mlp, positions, seed=1):
    """The authors' `adapter`: 18 tensors."""
    generator, state = torch.Generator().manual_seed(seed), {}
    state["class_embedding"] = torch.randn(width, generator=generator)
    state["positional_embedding"] = torch.randn(positions, width, generator=generator)
    state["trans_latent_dim.weight"] = torch.randn(width, m, generator=generator) * m**-0.5
    state["trans_latent_dim.bias"] = 0.1 * torch.randn(width, generator=generator)
    state["ln_pre.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
    state["ln_pre.bias"] = 0.2 * torch.randn(width, generator=generator)
    _block(state, "transformer.resblocks.0.", width, mlp, generator)
    return state


def clip_state(width, mlp, layers, positions, patch, projection, seed=2):
    """OpenAI's CLIP: the vision tower, and a little of the rest."""
    generator, state = torch.Generator().manual_seed(seed), {}
    state["class_embedding"] = torch.randn(width, generator=generator)
    state["positional_embedding"] = torch.randn(positions, width, generator=generator)
    state["conv1.weight"] = torch.randn(width, 3, patch, patch, generator=generator) / patch
    state["proj"] = torch.randn(width, projection, generator=generator) * width**-0.5
    for name in ("ln_pre", "ln_post"):
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)
    for layer in range(layers):
        _block(state, f"transformer.resblocks.{layer}.", width, mlp, generator)
    return {**{f"visual.{key}": value for key, value in state.items()}, "logit_scale": torch.tensor(4.6)}


def checkpoint(codec, neck):
    """The dictionary that the authors' training saves."""
    return {
        "epoch": 59,
        "state_dict": codec,
        "adapter": neck,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999)}]},
        "lr_scheduler": {"gamma": 0.1, "last_epoch": 60},
    }


# --- ELIC in plain PyTorch -------------------------------------------------------------------------------------------


def _conv(state, name, x, stride=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)


def _deconv(state, name, x):
    weight = state[f"{name}.weight"]
    return F.conv_transpose2d(x, weight, state[f"{name}.bias"], stride=2, padding=2, output_padding=1)


def _residual(state, name, x, layers=("conv1", "conv2", "conv3")):
    first, second, third = (f"{name}.{layer}" for layer in layers)
    return x + _conv(state, third, F.relu(_conv(state, second, F.relu(_conv(state, first, x)))))


def _gate(state, name, x):
    units = ("conv.0", "conv.2", "conv.4")
    a = b = x
    for unit in range(3):
        a = F.relu(_residual(state, f"{name}.conv_a.{unit}", a, units))
        b = F.relu(_residual(state, f"{name}.conv_b.{unit}", b, units))
    return a * torch.sigmoid(_conv(state, f"{name}.conv_b.3", b)) + x


def analysis(state, x):
    """g_a."""
    for layer in range(15):
        name = f"g_a.{layer}"
        if layer in (0, 4, 9, 13):
            x = _conv(state, name, x, stride=2)
        else:
            x = _gate(state, name, x) if layer in (8, 14) else _residual(state, name, x)
    return x


def synthesis(state, y_hat):
    """g_s."""
    x = y_hat
    for layer in range(15):
        name = f"g_s.{layer}"
        if layer in (1, 5, 10, 14):
            x = _deconv(state, name, x)
        else:
            x = _gate(state, name, x) if layer in (0, 6) else _residual(state, name, x)
    return x


def _chain(state, name, x):
    for layer in (0, 2, 4):
        x = _conv(state, f"{name}.{layer}", x)
        x = F.relu(x) if layer < 4 else x
    return x


def elic(state, x, groups):
    """y_hat and picture: rounding around the means of h_s, channel contexts and the two-pass checkerboard."""
    y = analysis(state, x)
    z = _conv(state, "h_a.4", F.relu(_conv(state, "h_a.2", F.relu(_conv(state, "h_a.0", y)), 2)), 2)
    medians = state["entropy_bottleneck.quantiles"][:, 0, 1][None, :, None, None]
    z_hat = torch.round(z - medians) + medians
    hyper = F.relu(_deconv(state, "h_s.2", F.relu(_deconv(state, "h_s.0", z_hat))))
    hyper = _conv(state, "h_s.4", hyper)
    rows, columns = torch.arange(y.shape[2])[:, None], torch.arange(y.shape[3])
    anchors = ((rows + columns) % 2 == 0).float()
    slices = []
    for k, part in enumerate(y.split(groups, 1)):
        contexts = []
        if k:
            support = slices[0] if k == 1 else torch.cat([slices[0], slices[k - 1]], 1)
            contexts = [_chain(state, f"cc_transforms.{k - 1}", support)]
        nothing = torch.zeros(len(y), 2 * groups[k], *y.shape[2:])
        means = _chain(state, f"ParamAggregation.{k}", torch.cat([nothing, *contexts, hyper], 1)).chunk(2, 1)[0]
        first = (torch.round(part - means) + means) * anchors
        name = f"context_prediction.{k}"
        weight = state[f"{name}.weight"] * state[f"{name}.mask"]
        spatial = F.conv2d(first, weight, state[f"{name}.bias"], padding=2)
        means = _chain(state, f"ParamAggregation.{k}", torch.cat([spatial, *contexts, hyper], 1)).chunk(2, 1)[0]
        slices.append(first + (torch.round(part - means) + means) * (1 - anchors))
    y_hat = torch.cat(slices, 1)
    return y_hat, synthesis(state, y_hat)
