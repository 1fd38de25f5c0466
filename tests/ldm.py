"""A tiny Stable Diffusion in the layout of single-file checkpoints: CompVis' names of weights."""

import re

LAYERS = 1  # per block, of the tiny U-Net


def checkpoint(pipeline):
    """The weights of `pipelines.stable_diffusion()`, under the names of such a file."""
    weights = {}
    for key, value in pipeline.unet.state_dict().items():
        weights["model.diffusion_model." + _unet(key)] = value.contiguous()
    for key, value in pipeline.vae.state_dict().items():
        name = "first_stage_model." + _vae(key)
        convolution = "attn_1" in name and value.ndim == 2
        weights[name] = (value[:, :, None, None] if convolution else value).contiguous()
    for key, value in pipeline.text_encoder.state_dict().items():
        name = "text_model." + key.removeprefix("text_model.")
        weights["cond_stage_model.transformer." + name] = value.contiguous()
    return weights


def _unet(key):
    for new, old in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        key = re.sub(rf"^{new}\b", old, key)
    key = re.sub(r"^conv_in\b", "input_blocks.0.0", key)
    key = re.sub(r"^mid_block.resnets.0", "middle_block.0", key)
    key = re.sub(r"^mid_block.attentions.0", "middle_block.1", key)
    key = re.sub(r"^mid_block.resnets.1", "middle_block.2", key)
    block = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", key)
    if block:
        way, number, kind, layer, rest = block.groups()
        number, layer = int(number) * (LAYERS + 1), int(layer)
        if kind == "downsamplers":
            key = f"input_blocks.{number + LAYERS + 1}.0.{rest.replace('conv', 'op')}"
        elif kind == "upsamplers":  # after the attention of its block
            key = f"output_blocks.{number + LAYERS}.2.{rest}"
        else:
            place = f"input_blocks.{number + layer + 1}"
            place = place if way == "down" else f"output_blocks.{number + layer}"
            key = f"{place}.{int(kind == 'attentions')}.{rest}"
    if re.match(r"(input_blocks|output_blocks)\.\d\.0\.|middle_block\.[02]", key):
        for new, old in {
            "norm1": "in_layers.0",
            "conv1": "in_layers.2",
            "time_emb_proj": "emb_layers.1",
            "norm2": "out_layers.0",
            "conv2": "out_layers.3",
            "conv_shortcut": "skip_connection",
        }.items():
            key = key.replace(new, old)
    return key


def _vae(key):
    key = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{1 - int(m[1])}", key)
    key = re.sub(r"\.resnets\.(\d)", r".block.\1", key)
    key = key.replace("upsamplers.0", "upsample").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.block\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for new, old in {
        "mid_block.attentions.0": "mid.attn_1",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "conv_norm_out": "norm_out",
    }.items():
        key = key.replace(new, old)
    return key
