"""Train the bundled text-to-image model from the files of a Debian package.

    apt-get install dataset-fashion-mnist
    python scripts/tiny_model/train.py vae                    # autoencoder
    python scripts/tiny_model/train.py judge                  # the two classifiers
    python scripts/tiny_model/train.py unet --minutes 120     # text encoder and U-Net; resumes
    python scripts/tiny_model/train.py bundle                 # the pipeline into the package
    python scripts/tiny_model/train.py references             # classifiers, statistics, prompts
    python scripts/tiny_model/train.py unpack                 # reverse of bundle, to go on

Each stage writes into --run (default runs/tiny); the U-Net's checkpoints and resumes.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_model import autoencoder, bundle, classifier, data, unet

MODELS = ("tiny", "tiny-second")  # of seed 0, and of any other
STAGES = ("vae", "judge", "unet", "bundle", "references", "unpack")
ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--width", type=int, default=32, help="channels of the U-Net at 16 x 16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="images a step of the U-Net")
    parser.add_argument("--out", type=Path, help="of bundle; by default the package's, by seed")
    args = parser.parse_args()
    args.out = args.out or ROOT / "sampler/stepsampler/bundled" / MODELS[min(args.seed, 1)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.stage == "vae":
        images, _ = data.load_split(args.data, "train")
        autoencoder.train(images, args.run / "vae", args.minutes, device)
    elif args.stage == "judge":
        for name, seed in (("texture", 1), ("judge", 2)):
            classifier.train(args.data, args.run / f"{name}.safetensors", seed)
    elif args.stage == "unet":
        unet.train(args.run, args.data, args.minutes, device, args.width, args.seed, args.batch)
    elif args.stage == "bundle":
        bundle.write_pipeline(args.run, args.width, args.seed, args.out)
    elif args.stage == "unpack":
        bundle.unpack(args.out, args.run, args.width, args.seed)
    else:
        bundle.write_evaluation(args.run, args.data)


if __name__ == "__main__":
    main()
