#!/usr/bin/env bash
# Who is surprised: whoever computes a CLIP score with torchmetrics 1.9 beside transformers 5.
#
# torchmetrics calls CLIPModel.get_text_features and get_image_features and takes the norm of what
# comes back. In transformers 5 that is no longer a tensor but an output object, so that every call
# ends in an AttributeError: on one small image and "a cat" as on anything else. Both are the
# newest releases, and pip sees no conflict.
#
# Shown on a random CLIP, nothing is downloaded but packages of PyPI. Exits with 0 as long as it is
# so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip torchmetrics==1.9.0 transformers==5.23.0 pillow
"$folder/venv/bin/pip" check
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
import torch, torchmetrics, transformers
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

print("torchmetrics", torchmetrics.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
letters = {chr(c): c - 97 for c in range(97, 123)}
letters |= {k + "</w>": 26 + v for k, v in letters.items()}
ends = {"<|startoftext|>": 52, "<|endoftext|>": 53}
tokenizer = CLIPTokenizer(vocab=letters | ends, merges=[], model_max_length=77)
small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2}
words = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53}
model = CLIPModel(CLIPConfig(
    text_config=small | words, vision_config=small | {"image_size": 32, "patch_size": 8},
    projection_dim=16,
)).eval()
size = {"height": 32, "width": 32}
processor = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size), tokenizer)
image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
inputs = processor(text=["a cat"], images=[image], return_tensors="pt")
print("transformers itself:", model(**inputs).logits_per_image.item())
metric = CLIPScore(lambda: (model, processor))
try:
    print("torchmetrics:", metric(image, "a cat").item())
except AttributeError as error:
    print("torchmetrics:", repr(error))
    raise SystemExit(0)
raise SystemExit(1)
P
