"""The autoencoder: 32 x 32 x 3 pixels <-> 16 x 16 x 4 latents, crisp on purpose.

1,024 latents hold 1,024 grey pixels, so nothing needs to be lost; what few sampling steps
destroy is then visible. A 1 x 1 convolution at either end of the latent (`quant_conv`,
`post_quant_conv`) absorbs an affine map after which the latents have mean 0 and variance 1, as
the noise schedule of Stable Diffusion expects, and distances like those of pixels.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .data import to_rgb
from .state import Clock, learning_rate


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=1.0,
    )


def edges(x: Tensor) -> Tensor:
    """Differences of neighbours at three scales: the feature term that keeps texture."""
    parts = []
    for _ in range(3):
        parts += [(x[..., 1:, :] - x[..., :-1, :]).flatten(1)]
        parts += [(x[..., :, 1:] - x[..., :, :-1]).flatten(1)]
        x = F.avg_pool2d(x, 2)
    return torch.cat(parts, 1)


def train(images: Tensor, folder: Path, minutes: float, device: str) -> AutoencoderKL:
    """Train on uint8 images of shape (n, 32, 32) and save to `folder`."""
    torch.manual_seed(0)
    vae = build().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0)
    clock, step, shown = Clock(minutes * 60), 0, time.monotonic()
    while (progress := clock.tick()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, 2e-3)
        x = to_rgb(images[torch.randint(len(images), (16,))]).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        loss = F.mse_loss(y, x) + 0.1 * F.l1_loss(y, x) + 0.1 * F.l1_loss(edges(y), edges(x))
        loss = (
            loss + 2e-7 * posterior.kl().mean()
        )  # enough to keep the latents tame, too little to lose detail
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            psnr = 10 * torch.log10(4 / F.mse_loss(y, x)).item()
            print(
                f"vae {progress:4.0%} step {step} loss {loss.item():.4f} psnr {psnr:.1f}",
                flush=True,
            )
    make_isometric(vae, images)
    vae.save_pretrained(folder)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 500) -> Tensor:
    """Latent means of uint8 images, float32 of shape (n, 4, 16, 16)."""
    device = next(vae.parameters()).device
    return torch.cat(
        [vae.encode(to_rgb(x).to(device)).latent_dist.mean.cpu() for x in images.split(batch)]
    )


@torch.no_grad()
def make_isometric(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold an affine map of the latent channels into the two 1 x 1 convolutions.

    Afterwards latents have mean 0 and variance 1 over all channels together, and a small change
    of any channel changes the pixels equally much. The map is the square root of the decoder's
    mean J^T J over channels, probed with random signs.
    """
    z = encode(vae, images[:10000])
    mean = z.mean((0, 2, 3)).double()
    probe = z[:256].to(next(vae.parameters()).device)
    signs = torch.randint(0, 2, probe[:, :1].shape, device=probe.device) * 2.0 - 1
    still, small = vae.decode(probe).sample, 0.05
    change = []
    for channel in range(4):
        moved = probe.clone()
        moved[:, channel : channel + 1] += small * signs
        change.append(((vae.decode(moved).sample - still) / small).flatten().double().cpu())
    gram = torch.stack(change) @ torch.stack(change).T
    values, vectors = torch.linalg.eigh(gram)
    forward = (vectors * values.sqrt()) @ vectors.T
    spread = torch.einsum("ij,njhw->nihw", forward, z.double() - mean[:, None, None]).std()
    forward = forward / spread
    backward = torch.linalg.inv(forward)
    quant, post = vae.quant_conv, vae.post_quant_conv
    device = quant.weight.device
    forward, backward, mean = forward.to(device), backward.to(device), mean.to(device)
    w, b = quant.weight[:4, :, 0, 0].double(), quant.bias[:4].double()
    quant.weight[:4, :, 0, 0] = (forward @ w).float()
    quant.bias[:4] = (forward @ (b - mean)).float()
    w, b = post.weight[:, :, 0, 0].double(), post.bias.double()
    post.weight[:, :, 0, 0] = (w @ backward).float()
    post.bias[:] = (w @ mean + b).float()
