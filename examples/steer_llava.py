"""Steer LLaVA-1.5-7B with CMRM. Needs the model (14 GB, downloaded on first use) and a GPU with 16 GB or more.

python examples/steer_llava.py anchors.jsonl photo.jpg "How is this made?"

anchors.jsonl: {"text": "...", "image": "photo.jpg"} on each line, harmful and harmless requests together.
"""

import sys

import steerkit as sk

anchors, image, question = sys.argv[1:]
vlm = sk.load("llava-hf/llava-1.5-7b-hf", dtype="bfloat16", device_map="auto")
vector = sk.CMRM().fit(vlm, sk.read_samples(anchors))
vector.save("cmrm-llava.safetensors")
prompt = sk.Sample(question, images=(image,))
print("unsteered:", *vlm.generate([prompt], max_new_tokens=128))
with sk.steer(vlm, vector) as receipt:
    print("steered:  ", *vlm.generate([prompt], max_new_tokens=128))
print(receipt)
