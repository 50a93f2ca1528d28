"""Peak memory of loading a checkpoint of about 1 GB (fp32, sharded) as bf16, against loading in fp32 and casting.

Weights read from a mapped file count as resident while the file is open, although the system may drop them at any time.
What limits the machine is the memory that the process owns ("own").
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sae_lens_maira.maira2 import Maira2Config, Maira2ForConditionalGeneration

_LOAD = """
import json, sys, threading, time, torch
from pathlib import Path
import sae_lens_maira.maira2 as maira2

def status_bytes(name):
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024

before, resident_before, peak, done = status_bytes("RssAnon"), status_bytes("VmRSS"), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, status_bytes("RssAnon"))
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
if sys.argv[2] == "asked":
    model = maira2.Maira2ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
else:
    model = maira2.Maira2ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32).to(torch.bfloat16)
done = True
watcher.join()
weights = sum(p.numel() * 2 for p in model.parameters())
print(json.dumps({"own": peak - before, "resident": status_bytes("VmHWM") - resident_before, "weights": weights}))
"""


def make_checkpoint(folder: Path) -> int:
    """Write a random MAIRA-2 of about 1 GB in fp32, and return its size in bytes."""
    text = {
        "model_type": "llama",
        "vocab_size": 32207,
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "pad_token_id": 0,
    }
    model = Maira2ForConditionalGeneration(Maira2Config(text_config=text))
    model.save_pretrained(folder, max_shard_size="250MB")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file_bytes = make_checkpoint(Path(folder))
        print(f"checkpoint: {file_bytes / 1e9:.2f} GB in fp32")
        for way in ("asked", "cast"):
            command = [sys.executable, "-c", _LOAD, folder, way]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            result = json.loads(output.splitlines()[-1])
            name = "from_pretrained(dtype=bfloat16)" if way == "asked" else "from_pretrained(float32).to(bfloat16)"
            own, resident, weights = (result[key] / 1e9 for key in ("own", "resident", "weights"))
            print(
                f"{name:38} bf16 weights {weights:.2f} GB; peak: own {own:.2f} GB = {own / weights:.2f} x, "
                f"with mapped file pages {resident:.2f} GB = {resident / weights:.2f} x"
            )


if __name__ == "__main__":
    main()
