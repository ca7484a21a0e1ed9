#!/usr/bin/env python3
"""The served model as clients of others see it: Triton's own (`tritonclient`, PyPI), and requests in the form that
KServe's client sends. `cargo xtask test --only clients` runs it:

    check.py CONSILIUM_INFERENCE PHANTOM_RELEASE

KServe's package brings 340 MB with it for a client of a few lines, so that its requests are written out here instead; with
`--long` it is installed, and its own client asks as well.
"""

import asyncio
import gzip
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL = "phantoms-r1"
SHAPE = (12, 16, 16)


def start(server, maker, folder):
    """A server of a small release, and where it listens."""
    made = subprocess.run([maker, folder], check=True, capture_output=True, text=True)
    return serve(server, folder, *made.stdout.split())


def serve(server, folder, release, model):
    """A server of the release in a folder, and where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = ["serve", "--name", MODEL, "--root", folder, "--listen", address, "--threads", "1"]
    process = subprocess.Popen(
        [server, *arguments, "--release-digest", release, "--model-digest", model],
        # Nobody would renew a lease here.
        env={name: value for name, value in os.environ.items() if name != "CONSILIUM_LEASE"})
    began = time.monotonic()
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=10)
            return process, address
        except OSError:
            assert process.poll() is None, f"the server ended with {process.returncode}"
            if time.monotonic() - began > 300:
                process.kill()
                raise AssertionError("the server is not ready after five minutes")
            time.sleep(0.05)


def refused(part, call):
    try:
        call()
    except InferenceServerException as error:
        assert part in error.message(), f"{error.message()!r} lacks {part!r}"
        return
    raise AssertionError(f"taken, though {part!r}")


def asked(volume, datatype, binary):
    tensor = triton.InferInput("volume", list(volume.shape), datatype)
    return tensor.set_data_from_numpy(volume, binary_data=binary)


def by_triton(address):
    """What each call of the client makes of our answers."""
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert not client.is_model_ready("another")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]
    metadata = client.get_model_metadata(MODEL)
    version = metadata["versions"][0]
    assert client.is_model_ready(MODEL, version) and client.get_model_metadata(MODEL, version) == metadata
    assert client.get_model_config(MODEL)["output"][0]["data_type"] == "TYPE_UINT8"
    assert [entry["state"] for entry in client.get_model_repository_index()] == ["READY"]

    random = np.random.default_rng(1)
    scan = random.normal(size=SHAPE).astype(np.float32)
    truth = None
    for volume in (scan, scan.reshape(1, *SHAPE), scan.reshape(1, 1, *SHAPE)):
        for binary in (True, False):
            for how in (None, "gzip", "deflate"):
                answer = client.infer(
                    MODEL, [asked(volume, "FP32", binary)], request_id="scan 7", model_version=version,
                    outputs=[triton.InferRequestedOutput("labels", binary_data=binary)],
                    parameters={"of": "a test"}, request_compression_algorithm=how, response_compression_algorithm=how)
                labels = answer.as_numpy("labels")
                assert labels.shape == volume.shape and labels.dtype == np.uint8, (labels.shape, labels.dtype)
                assert answer.get_response()["id"] == "scan 7"
                truth = labels.ravel() if truth is None else truth
                assert (labels.ravel() == truth).all()
    # The same patient, stored the other way round along each axis: the same labels, where that client has them.
    turned = np.ascontiguousarray(scan[::-1, ::-1, ::-1])
    answer = client.infer(MODEL, [asked(turned, "FP32", True)], parameters={"orientation": "LPI"})
    assert (answer.as_numpy("labels")[::-1, ::-1, ::-1].ravel() == truth).all()
    # Without outputs the client means all of them; bytes of a scanner that has no more than 256 values.
    small = random.integers(0, 256, SHAPE, dtype=np.uint8)
    assert client.infer(MODEL, [asked(small, "UINT8", True)]).as_numpy("labels").shape == SHAPE

    refused("\"image\" is not known", lambda: client.infer(MODEL, [triton.InferInput("image", list(SHAPE), "FP32")
                                                                 .set_data_from_numpy(scan)]))
    refused("\"mask\" is not known", lambda: client.infer(
        MODEL, [asked(scan, "FP32", True)], outputs=[triton.InferRequestedOutput("mask")]))
    refused("classification", lambda: client.infer(
        MODEL, [asked(scan, "FP32", True)], outputs=[triton.InferRequestedOutput("labels", class_count=2)]))
    refused("FP64", lambda: client.infer(MODEL, [asked(scan.astype(np.float64), "FP64", True)]))
    refused("not served here", lambda: client.infer("another", [asked(scan, "FP32", True)]))
    refused("Not Found", lambda: client.load_model(MODEL))
    statistics = client.get_inference_statistics(MODEL)["model_stats"][0]
    assert statistics["inference_count"] == 20, statistics
    assert statistics["inference_stats"]["fail"]["count"] == 4, statistics
    client.close()


def by_kserve(address):
    """KServe's client asks with JSON, sends nested arrays or flat ones, and reads these bodies."""
    def ask(path, body=None, **headers):
        data = None if body is None else json.dumps(body).encode() if not isinstance(body, bytes) else body
        request = urllib.request.Request(f"http://{address}{path}", data, headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    assert ask("/v2/health/live") == (200, {"live": True})
    assert ask("/v2/health/ready") == (200, {"ready": True})
    assert ask(f"/v2/models/{MODEL}/ready") == (200, {"name": MODEL, "ready": True})
    ones = np.ones((1, 1, *SHAPE), dtype=np.float32)
    answers = []
    for data in (ones.tolist(), ones.ravel().tolist()):
        tensor = {"name": "volume", "shape": list(ones.shape), "datatype": "FP32", "data": data, "parameters": {}}
        status, answer = ask(f"/v2/models/{MODEL}/infer", {"id": "7", "inputs": [tensor], "parameters": None})
        assert status == 200 and answer["id"] == "7" and answer["model_name"] == MODEL, answer
        assert answer["outputs"][0]["shape"] == list(ones.shape) and len(answer["outputs"][0]["data"]) == ones.size
        answers.append(answer["outputs"])
    assert answers[0] == answers[1]
    wrong = {"name": "volume", "shape": [1, 1, 3], "datatype": "UINT8"}
    for values in ([1, 2, 300], [1, 2, -1], [1, 2, 1.5]):
        status, answer = ask(f"/v2/models/{MODEL}/infer", {"inputs": [{**wrong, "data": values}]})
        assert status == 400 and f"value number 2 is {values[2]}" in answer["error"], answer
    # The mistakes that are made by hand: no header for the bytes, and a body that is compressed and does not say so.
    head = json.dumps({"inputs": [{**wrong, "parameters": {"binary_data_size": 3}}]}).encode()
    status, answer = ask(f"/v2/models/{MODEL}/infer", head + b"\x01\x02\x03")
    assert status == 400 and "Inference-Header-Content-Length" in answer["error"], answer
    whole = json.dumps({"inputs": [{**wrong, "data": [1, 2, 3]}]}).encode()
    assert ask(f"/v2/models/{MODEL}/infer", gzip.compress(whole))[0] == 400
    for name, packed in (("gzip", gzip.compress(whole)), ("deflate", zlib.compress(whole))):
        assert ask(f"/v2/models/{MODEL}/infer", packed, **{"Content-Encoding": name})[0] == 200
    status, answer = ask(f"/v2/models/{MODEL}/infer", whole, **{"Content-Encoding": "zstd"})
    assert status == 415 and "gzip, deflate" in answer["error"], answer


def by_kserve_itself(address):
    """KServe's own client; whether its package is here."""
    try:
        from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    except ImportError:
        return False

    async def talk():
        client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=60))
        base = f"http://{address}"
        assert await client.is_server_live(base) and await client.is_server_ready(base)
        assert await client.is_model_ready(base, MODEL)
        ones = np.ones((1, 1, *SHAPE), dtype=np.float32)
        labels = []
        for binary in (False, True):
            tensor = InferInput("volume", list(ones.shape), "FP32")
            tensor.set_data_from_numpy(ones, binary_data=binary)
            answer = await client.infer(base, InferRequest(MODEL, [tensor], request_id="7"), model_name=MODEL)
            assert answer.id == "7" and answer.model_name == MODEL
            assert list(answer.outputs[0].shape) == list(ones.shape)
            labels.append(answer.outputs[0].as_numpy())
        assert (labels[0] == labels[1]).all() and labels[0].dtype == np.uint8

    asyncio.run(talk())
    return True


def main():
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(*sys.argv[1:3], folder)
        try:
            by_triton(address)
            by_kserve(address)
            itself = by_kserve_itself(address)
        finally:
            process.terminate()
            process.wait()
    others = "tritonclient, KServe's client" if itself else "tritonclient"
    print(f"{others} and requests in KServe's form: as the protocol says")


if __name__ == "__main__":
    main()
