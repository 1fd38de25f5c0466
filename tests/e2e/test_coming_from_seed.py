"""Each row of docs/coming-from-seed.md runs, on tiny pipelines of the real classes."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from npnet import checkpoint
from PIL import Image
from pipelines import FAMILIES, save_lora

from stepsampler.cli import main as sample_main
from stepsearch.cli import main as search_main
from stepsearch.rehearsal.miniatures.texts import clip_encoder, save_clip

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-seed.md"
GEN = '--prompt "a castle" --size 32 -o out'
SET = "--prompts captions_val2014.json --limit 2 --shuffle-seed 42 --size 32 -o out"
TEXTS = "--prompts extracted_texts_10k.txt --size 32 -o out"
SCORE = "--images 2 --batch-size 2 --cache cache"
MAKE = "-o x.json"
SHOT = f"x.json --model sd {GEN}"
# First cell of a row, without code marks -> what its second and third say, as command lines of a
# folder with the pipelines sd, xl, xl77 (texts of 77 tokens) and lcm, and with the CLIP clip. Of a
# family of presets one, where N says so.
ROWS = {
    "txt2img.py --stop_steps N --scale 7.5": [f"seed-sd-5 --model sd {GEN}"],
    "txt2imgAcgn.py": [f"seed-sd-4 --model sd {GEN}"],
    "txt2imgXL.py --stop_steps N": [f"seed-xl-5 --model xl {GEN}"],
    "txt2imgOrg.py --ddim_steps 50, org_val.py": [
        "make linspace --steps 50 --guidance-scale 7.5 -o org.json",
        "make linspace --steps 3 --guidance-scale 7.5 -o x.json",
        SHOT,
    ],
    "txt2imgOrgXL.py, org_xl_val.py, org_xl_val_laion.py": [
        "make linspace --steps 3 --guidance-scale 7.5 --model sdxl -o x.json",
        f"x.json --model xl {GEN}",
    ],
    "txt2imgUniPC.py --steps 6": [f"seed-unipc-sd-6-plain --model sd {GEN}"],
    "txt2imgUniPCXL.py --steps N": [f"seed-unipc-xl-5 --model xl {GEN}"],
    "txt2imgXLAcgnNew.py": [
        '"seed-dunipc-anime-8" --model xl --prompt "a castle" --size 24x32 -o out'
    ],
    "customed_sampler.py, customed_sampler_xl.py": [
        f"batch seed-sd-8 --model sd {SET}",
        f"batch seed-xl-6 --model xl {SET.replace('out', 'out2')}",
    ],
    "customed_samper_laion.py, customed_sampler_xl_laion.py": [
        f"batch seed-sd-6-free --model sd {TEXTS}",
    ],
    "customed_unipc_sampler.py": [f"batch seed-unipc-sd-6 --model sd {TEXTS}"],
    "customed_unipc_sampler_laion.py": [f"batch seed-unipc-sd-5-laion --model sd {TEXTS}"],
    "customed_unipc_xl_sampler.py, customed_unipc_xl_sampler_laion.py": [
        f"batch seed-unipc-xl-8 --model xl {TEXTS}",
        f"batch seed-unipc-xl-6 --model xl {TEXTS.replace('out', 'out2')}",
    ],
    "customed_dpmv3likedUnipC_xl_sampler.py": [f"batch seed-dunipc-xl-6 --model xl {TEXTS}"],
    "preference JSON, parquet": [
        "batch seed-sd-4 --model sd --prompts pref.json --size 32 -o out",
        "batch seed-sd-4 --model sd --prompts laion.parquet --column TEXT --size 32 -o out2",
    ],
    "combine_inference_grid.py": [
        "make linspace --steps 2 -o org.json",
        "grid seed-sd-8 org.json --model sd --prompt a --seeds 0-1 --size 32 -o grid.png",
    ],
    # Official Inception's features, in its stead those of lite0, are clean-fid's: test_cleanfid.py
    "cal_fid.py": [
        "stepsearch evaluate images --reference coco_val --fit squash512 --extractor lite0 "
        "--images 3 --batch-size 3 --cache cache",
    ],
    "cal_clip_score.py": [
        "make linspace --steps 2 -o x.json",
        f"stepsearch evaluate x.json --model sd --size 32 --clip-score clip {SCORE}",
    ],
    "Flash, LCM, Lightning, Turbo, DMD2 baselines of its history": [
        f"stepsearch evaluate --model sd --size 32 --lora lora.safetensors --stock 2 "
        f"--scheduler LCMScheduler --guidance-scale 1 {SCORE}",
        f"stepsearch evaluate lcm-sd-2 --model lcm --size 32 --stock 2 --guidance-scale 8 {SCORE}",
    ],
    "AMED of its history": [
        "stepsearch amed --calls 2 --model sd --size 32 --trajectories 2 -o amed.safetensors",
        f"stepsearch evaluate amed.safetensors --model sd --size 32 {SCORE}",
        f"amed-sd15-10 --model sd {GEN}",
    ],
    "--stop_steps N, --steps N": [
        f"seed-unipc-sd-5 --model sd {GEN}",
        "make seed-original --steps 3 -o x.json",
        SHOT,
    ],
    "--use_8full_trcik (always on there)": [
        f"seed-xl-8 --model xl {GEN}",
        f"seed-sd-8-plain --model sd {GEN}",
    ],
    "--use_retrain (4 steps)": [
        f"seed-sd-4-retrain-free --model sd {GEN}",
        f"seed-xl-4-plain --model xl {GEN}",
    ],
    "--use_free_net (always on in XL and LAION)": [
        f"make seed-sd-7 --free-u 1.1,1.1,0.9,0.2 {MAKE}",
        SHOT,
        "make seed-xl-4 --free-u off -o y.json",
    ],
    "--start_free_u_step K": [
        f"make seed-unipc-sd-8 --free-u 1.2,1.2,0.9,0.2 --free-u-from 6 {MAKE}",
        SHOT,
    ],
    "--force_not_use_ct": [f"seed-sd-4-no-ct --model sd {GEN}"],
    "--ddim_steps": ["make seed-original --steps 4 -o x.json", f"seed-sd-9 --model sd {GEN}"],
    "--use_raw_golden_noise": [f"seed-sd-7-golden --model sd {GEN}"],
    "--force_not_use_NPNet, --npnet-checkpoint FILE.pth": [
        "convert-npnet sdxl.pth -o n.safetensors",
        f"make seed-xl-8 --golden-noise n.safetensors {MAKE}",
        f"x.json --npnet n.safetensors --model xl77 {GEN}",
        "make x.json --golden-noise off -o y.json",
    ],
    "--use_afs, force_not_use_afs": [
        f"make power --steps 6 --analytic 1,0.5 {MAKE}",
        SHOT,
        f"seed-unipc-xl-5-no-afs --model xl {GEN}",
    ],
    "--use_free_predictor": [f"seed-dunipc-anime-5-free-predictor --model xl {GEN}"],
    "need_fp16_discrete_method, denoise_to_zero": [
        f"seed-unipc-xl-6-fp16-to-zero --model xl {GEN}"
    ],
    "ultilize_vae": [f"seed-dunipc-xl-5-vae-afs --model xl {GEN}"],
    "--scale W": [f"make seed-sd-8 --guidance-scale 1 {MAKE}", SHOT],
    "--seed S, --n_iter, --n_samples": [f"seed-sd-4 --model sd --seeds 3-4 --batch-size 1 {GEN}"],
    "--H 1024 --W 768": ["seed-sd-4 --model sd --prompt a --size 24x32 -o out"],
    "--C, --f, --ckpt": [f"seed-sd-4 --model sd {GEN}"],
    "--precision": [f"seed-sd-4 --model sd --dtype bfloat16 {GEN}"],
    "--from-file": [f"seed-sd-4 --model sd {TEXTS}"],
    "--unconditional_prompt": [f'seed-sd-4 --model sd --negative-prompt "low quality" {GEN}'],
    "--outdir": [f"seed-sd-4 --model sd {GEN}"],
}
STATISTICS = (
    "statistics --model sd --guidance-scale 3 --intervals 8 --samples 2 --batch-size 2 "
    "--prompts extracted_texts_10k.txt --size 32 -o s.safetensors"
)
# A trained network: statistics of a random one may overflow
OURS = "statistics --guidance-scale 2 --intervals 16 --samples 8 --batch-size 8 --prompt sneaker"
ROWS |= {
    "txt2imgV3.py --steps N, customed_v3_sampler.py": [
        f"seed-v3-sd-5 --model sd {GEN}",
        f"seed-v3-sd-6-coco --model sd {GEN.replace('out', 'out2')}",
        f"seed-v3-sd-6-coco --model sd --statistics 7.5_250_1024 {GEN.replace('out', 'out3')}",
    ],
    "compute_EMS_scoresde.py": [
        STATISTICS,
        STATISTICS.replace("-o s.", "--images coco_val -o t."),
    ],
    "--statistics_dir DIR": [
        f"{OURS} -o s.safetensors",
        f"make linspace --steps 3 --solver dpm-v3 --statistics s.safetensors {MAKE}",
        "x.json --statistics s.safetensors --prompt sneaker -o out",
    ],
}
# No command of ours: had no effect there
NOTHING = {"--skip_save, --inner_lcm_step, --method, --skip_type, --naf-opt"}


def rows():
    """(first cell without code marks, the others) of the tables of scripts and of flags."""
    found = {}
    for part in ("Scripts", "Flags"):
        text = PAGE.read_text(encoding="utf-8").split(f"## {part}\n")[1].split("\n## ")[0]
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("|") and not set(line) <= set("|- ") and "here" not in cells:
                found[cells[0].replace("`", "")] = " ".join(cells[1:])
    return {name: said for name, said in found.items() if name != "flag"}


def test_every_row_has_a_test():
    done = {name for name, said in rows().items() if "not yet" not in said}
    assert done == {*ROWS, *NOTHING}


def test_what_the_tests_run_is_what_the_rows_say():
    """Presets that a row is tested with are named there, N standing for a number."""
    for name, said in rows().items():
        listed = {re.escape(w).replace("N", r"\d+") for w in re.findall(r"[a-z]+-[\w-]+", said)}
        for word in re.findall(r"(?:seed|amed|lcm)-[\w-]+", " ".join(ROWS.get(name, []))):
            known = any(re.fullmatch(pattern, word) for pattern in listed)
            generic = word in ("seed-sd-4", "lcm-sd-2", "seed-sd-9", "seed-unipc-sd-5")
            assert known or generic, (name, word)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("seed")
    for name, kind in (("sd", "stable-diffusion"), ("xl", "sdxl"), ("lcm", "lcm")):
        FAMILIES[kind]().save_pretrained(place / name)
    long = FAMILIES["sdxl"]()
    tokenizer = long.tokenizer
    tokenizer.model_max_length = long.tokenizer_2.model_max_length = 77
    long.text_encoder = clip_encoder(tokenizer, layers=2)
    long.text_encoder_2 = clip_encoder(tokenizer, width=48, layers=2, projection=24)
    long.save_pretrained(place / "xl77")
    torch.save(checkpoint(16, 80), place / "sdxl.pth")  # of that pipeline's latents and texts
    save_clip(place / "clip")
    (place / "7.5_250_1024").mkdir()
    numbers = np.full((251, 4, 16, 16), 0.1, np.float32)
    np.savez(place / "7.5_250_1024" / "l.npz", l=numbers)
    np.savez(place / "7.5_250_1024" / "sb.npz", s=numbers, b=numbers)
    for name in ("images", "coco_val"):
        (place / name).mkdir()
        for k in range(3):
            pixels = np.random.default_rng(k).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{k}.png")
    save_lora(place / "lora.safetensors")
    captions = [{"id": k, "image_id": k // 2, "caption": f"a bag {k}"} for k in range(8)]
    (place / "captions_val2014.json").write_text(
        json.dumps({"images": [{"id": k} for k in range(4)], "annotations": captions})
    )
    (place / "extracted_texts_10k.txt").write_text("a bag\na shoe\n")
    preferences = [{"human_preference": [1, 0], "prompt": t, "file_path": []} for t in "ab"]
    (place / "pref.json").write_text(json.dumps(preferences))
    table = pyarrow.table({"TEXT": ["a bag", "a shoe"]})
    pyarrow.parquet.write_table(table, place / "laion.parquet")
    return place


@pytest.mark.parametrize("row", ROWS)
def test_the_commands_of_the_row_run(row, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in folder.iterdir():
        (tmp_path / source.name).symlink_to(source)
    for line in ROWS[row]:
        words = shlex.split(line)
        search = words[0] == "stepsearch"
        monkeypatch.setattr(sys, "argv", words if search else ["stepsample", *words])
        with pytest.raises(SystemExit, match="^0$"):  # the exit code
            (search_main if search else sample_main)()
    for path in [*tmp_path.glob("out*/**/*.png"), *tmp_path.glob("grid.png")]:
        assert np.asarray(Image.open(path)).std() > 1
    made = {path.name for path in tmp_path.iterdir() if not path.is_symlink()}
    assert made, "something was written"
