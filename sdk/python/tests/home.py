#!/usr/bin/env python3
"""A model that was pulled, opened with PyPI's safetensors, and, where torch is installed, run: the same tensors and the same
labels as from the server.

    home.py CONSILIUM_INFERENCE PHANTOM_RELEASE TAKE_HOME
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[3] / "inference/clients")]

import consilium  # noqa: E402


def opened(folder, take_home, model):
    """The tensors that the hub has are the tensors that a researcher has, by a library that is not ours."""
    home = folder / "home.safetensors"
    subprocess.run([take_home, folder / "model.safetensors", home], check=True, stdout=subprocess.DEVNULL)
    pulled, at_hub = load_file(home), load_file(folder / "model.safetensors")
    assert pulled.keys() == at_hub.keys() and pulled
    for name, tensor in at_hub.items():
        assert pulled[name].dtype == np.float32 and (pulled[name] == tensor).all(), name
    found = consilium.open(home)
    assert found.digest == model, (found.digest, model)
    assert found.release["config"]["network"]["kind"] == "UNet3D"
    card = (folder / "home.card.md").read_text(encoding="utf-8")
    assert "permits no clinical use" in card, card

    damaged = folder / "damaged.safetensors"
    shutil.copy(folder / "home.release.json", folder / "damaged.release.json")
    whole = bytearray(home.read_bytes())
    whole[-1] ^= 1
    damaged.write_bytes(whole)
    try:
        consilium.open(damaged)
    except consilium.ModelError as error:
        assert "pull it again" in str(error), error
    else:
        raise AssertionError("a damaged model was opened")
    return found


def dice(a, b, label):
    both = (a == label).sum() + (b == label).sum()
    return 2 * ((a == label) & (b == label)).sum() / both if both else 1.0


def run(found, server, folder, release, model):
    """In torch it answers what the server answers: whoever measures it at home measures the model that hospitals use."""
    import check
    from consilium.unet import Segmenter

    process, address = check.serve(server, folder, release, model)
    try:
        client = check.triton.InferenceServerClient(address)
        random = np.random.default_rng(3)
        segmenter = Segmenter(found)
        for shape in (segmenter.tile, (21, 30, 17), (5, 9, 16)):
            volume = random.normal(size=shape).astype(np.float32) + np.linspace(0, 3, shape[2], dtype=np.float32)
            truth = (volume > 1).astype(np.uint8) + (volume > 2)
            answer = client.infer(check.MODEL, [check.asked(volume, "FP32", True)]).as_numpy("labels").reshape(shape)
            ours = segmenter.segment(volume)
            # Two libraries round differently where two classes are as good as equal.
            assert (ours == answer).mean() > 0.999, (shape, (ours == answer).mean())
            for label in (1, 2):
                assert abs(dice(ours, truth, label) - dice(answer, truth, label)) < 1e-3
        client.close()
    finally:
        process.terminate()
        process.wait()


def main():
    server, maker, take_home = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        release, model = subprocess.run([maker, folder], check=True, capture_output=True, text=True).stdout.split()
        found = opened(folder, take_home, model)
        try:
            import torch  # noqa: F401
        except ImportError:
            print("a pulled model: the hub's tensors, by safetensors; torch is not here (--long has it)")
            return
        run(found, server, folder, release, model)
    print("a pulled model: the hub's tensors, by safetensors; in torch the server's labels and Dice")


if __name__ == "__main__":
    main()
