"""Model folders for tests, made of the world's by the standard library."""

import json
import shutil
import struct

from suite import SOURCE

WORLD_MODELS = SOURCE / "common/world/models"


def reward_model(name, to, seed=1):
    """A reward model in the folder `to`: the world's model `name` with a head of fixed pseudo-random weights."""
    shutil.copytree(WORLD_MODELS / name, to)
    config = json.loads((to / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (to / "config.json").write_text(json.dumps(config))
    weights = (to / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", weights[:8])
    header, data = json.loads(weights[8 : 8 + size]), weights[8 + size :]
    width = config["hidden_size"]
    head = [((seed * 2654435761 + 40503 * i) % 65536) / 32768 - 1 for i in range(width)]
    header["score.weight"] = {"dtype": "F32", "shape": [1, width], "data_offsets": [len(data), len(data) + 4 * width]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (to / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data + struct.pack(f"<{width}f", *head))
    return to
