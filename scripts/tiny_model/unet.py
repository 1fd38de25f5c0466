"""Text encoder and U-Net, trained together on the latents of the autoencoder."""

import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from . import text
from .autoencoder import encode
from .data import load_split, prompts
from .state import Average, Clock, learning_rate, load_state, save_state

PEAK = 1e-3
DROPOUT = 0.12  # of prompts, for classifier-free guidance


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule: `scaled_linear` betas, epsilon prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build(width: int, cross_attention_dim: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=16,
    )


class Both(nn.Module):
    """One module for the optimiser, the average and the checkpoint."""

    def __init__(self, unet: UNet2DConditionModel, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.encoder = unet, encoder


def train(
    folder: Path, data: Path, minutes: float, device: str, width: int, seed: int, batch: int
) -> None:
    """Train until `minutes` are spent over all sittings; the learning rate follows that clock."""
    torch.manual_seed(seed)
    images, labels = load_split(data, "train")
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    latents = encode(vae, images)
    print(f"latents: mean {latents.mean():.3f} std {latents.std():.3f}", flush=True)
    tokenizer = text.build_tokenizer(folder / "tokenizer")
    pairs = prompts()
    by_class = [[i for i, (_, c) in enumerate(pairs) if c == label] for label in range(10)]
    by_class_tensor = torch.tensor(by_class)
    ids = text.tokenize(tokenizer, [p for p, _ in pairs] + [""])

    both = Both(build(width, 96), text.build_encoder(tokenizer)).to(device)
    count = sum(p.numel() for p in both.parameters()) / 1e6
    average = Average(both, 1 - batch / 128_000)
    optimizer = torch.optim.AdamW(both.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.01)
    run = folder / f"unet-{width}-{seed}"
    info = load_state(run, both, average, optimizer) or {"step": 0, "images": 0, "seconds": 0.0}
    print(f"{count:.1f} M parameters, from image {info['images']:,}", flush=True)
    generator = torch.Generator().manual_seed(seed + info["step"])
    betas = scheduler().alphas_cumprod
    fast = device != "cpu" or torch.cpu._is_avx512_bf16_supported()
    clock = Clock(minutes * 60, info["seconds"])
    saved = shown = time.monotonic()
    since, total = 0, 0.0

    def checkpoint() -> None:
        info["seconds"] = clock.spent
        save_state(run, both, average, optimizer, info)

    while (progress := clock.tick()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, PEAK)
        pick = torch.randint(len(latents), (batch,), generator=generator)
        x0 = latents[pick]
        choice = torch.randint(by_class_tensor.shape[1], (batch,), generator=generator)
        prompt = by_class_tensor[labels[pick], choice]
        prompt[torch.rand(batch, generator=generator) < DROPOUT] = len(pairs)
        loss = step_loss(both, x0, ids, prompt, betas, generator, fast, device)
        optimizer.zero_grad()
        loss.backward()
        check_gradients(both)
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        info["step"] += 1
        info["images"] += batch
        average.update(both, info["step"])
        since, total = since + 1, total + loss.item()
        if time.monotonic() - shown > 30:
            rate = since * batch / (time.monotonic() - shown)
            print(
                f"{progress:6.1%} images {info['images']:,} loss {total / since:.4f} "
                f"lr {optimizer.param_groups[0]['lr']:.1e} {rate:.0f} images/s",
                flush=True,
            )
            shown, since, total = time.monotonic(), 0, 0.0
        if time.monotonic() - saved > 300:
            saved = time.monotonic()
            checkpoint()
    checkpoint()


def check_gradients(both: Both) -> None:
    """Every tensor learns. (A compiled U-Net once lost the gradients of all but its top level.)

    The text encoder's query of a prompt without attention to it may be zero; whole layers may not.
    """
    still = [n for n, p in both.named_parameters() if p.grad is None or not p.grad.any()]
    if still:
        raise RuntimeError(f"{len(still)} tensors have no gradient, such as {still[0]}")


def step_loss(
    both: Both,
    x0: Tensor,
    ids: Tensor,
    prompt: Tensor,
    alphas_cumprod: Tensor,
    generator: torch.Generator,
    fast: bool,
    device: str,
) -> Tensor:
    """Squared error of epsilon under min-SNR weights (Hang et al. 2023, gamma = 5)."""
    n = len(x0)
    position = (torch.arange(n) + torch.rand(n, generator=generator)) / n  # stratified
    t = (position[torch.randperm(n, generator=generator)] * 1000).long().clamp(max=999)
    noise = torch.randn(x0.shape, generator=generator)
    alpha_bar = alphas_cumprod[t]
    weight = (5 * (1 - alpha_bar) / alpha_bar).clamp(max=1).to(device)
    scale = alpha_bar[:, None, None, None]
    x = (scale.sqrt() * x0 + (1 - scale).sqrt() * noise).to(device)
    unique, inverse = prompt.unique(return_inverse=True)
    with torch.autocast(device, torch.bfloat16, enabled=fast):
        states = both.encoder(ids[unique].to(device))[0][inverse.to(device)]
        epsilon = both.unet(x, t.to(device), states, return_dict=False)[0]
    error = (epsilon.float() - noise.to(device)).square().mean((1, 2, 3))
    return (weight * error).mean()
