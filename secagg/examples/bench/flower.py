"""Flower's SecAgg+ on this machine: what it costs, and the attack that a lying server mounts on it.

    flower.py measure N MILLIONS     CPU seconds of one client and of the server, one JSON object per line
    flower.py attack                 a server that lists its victim as active and as dead

The client's functions are Flower's own, unmodified. The server's are Flower's own too, called in the order of its
workflow, whose transport is left out (to Flower's advantage). Defaults of its workflow; every client is a neighbour of
every other, as here.
"""

import json
import sys
import time

import numpy as np
from flwr.client.mod.secure_aggregation import secaggplus_mod as _  # noqa: F401  (fails early without Flower)
from flwr.common import bytes_to_ndarray, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

mod = sys.modules["flwr.client.mod.secure_aggregation.secaggplus_mod"]

CLIP, TARGET, MODULUS, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0


def threshold(n):
    return 2 * n // 3 + 1


def federation(n):
    """n clients up to dealt shares, and what each gets from the others."""
    config = {
        Key.SAMPLE_NUMBER: n,
        Key.SHARE_NUMBER: n,
        Key.THRESHOLD: threshold(n),
        Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: TARGET,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: MAX_WEIGHT,
    }
    clients, keys = {}, {}
    for nid in range(1, n + 1):
        clients[nid] = mod.SecAggPlusState(nid=nid)
        reply = mod._setup(clients[nid], config)
        keys[nid] = [reply[Key.PUBLIC_KEY_1], reply[Key.PUBLIC_KEY_2]]
    inbox = {nid: {Key.CIPHERTEXT_LIST: [], Key.SOURCE_LIST: []} for nid in clients}
    spent = 0.0
    for nid, client in clients.items():
        start = time.process_time()
        reply = mod._share_keys(client, {str(i): k for i, k in keys.items()})
        spent = time.process_time() - start
        for to, ciphertext in zip(reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST]):
            inbox[to][Key.CIPHERTEXT_LIST].append(ciphertext)
            inbox[to][Key.SOURCE_LIST].append(nid)
    return clients, keys, inbox, spent


def upload(client, inbox, update, examples=500):
    return mod._collect_masked_vectors(client, inbox, examples, ndarrays_to_parameters([update]))[Key.MASKED_PARAMETERS]


def remove_masks(vector, keys, collected, active, n):
    """The mask removal of Flower's unmask_stage."""
    for nid, shares in collected.items():
        assert len(shares) >= threshold(n), "not enough shares"
        secret = combine_shares(shares)
        if nid in active:
            vector = parameters_subtraction(vector, pseudo_rand_gen(secret, MODULUS, get_parameters_shape(vector)))
            continue
        for other in set(keys) - {nid}:
            shared = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(keys[other][0]))
            mask = pseudo_rand_gen(shared, MODULUS, get_parameters_shape(vector))
            vector = (parameters_addition if nid > other else parameters_subtraction)(vector, mask)
    return parameters_mod(vector, MODULUS)


def measure(n, d):
    clients, keys, inbox, spent = federation(n)
    update = np.random.default_rng(1).normal(0, 1e-3, d).astype(np.float32)
    start = time.process_time()
    masked = upload(clients[1], inbox[1], update)
    spent += time.process_time() - start
    print(json.dumps({"side": "client", "n": n, "d": d, "dropped": 0, "cpu": spent}), flush=True)
    # The others' vectors cost the server the same whatever they hold.
    for nid in range(2, n + 1):
        for source, ciphertext in zip(inbox[nid][Key.SOURCE_LIST], inbox[nid][Key.CIPHERTEXT_LIST]):
            plain = mod.decrypt(clients[nid].ss2_dict[source], ciphertext)
            _, _, own, key = mod.share_keys_plaintext_separate(plain)
            clients[nid].rd_seed_share_dict[source], clients[nid].sk1_share_dict[source] = own, key
    for dropped in (0, 1):
        active = set(range(1, n + 1 - dropped))
        if len(active) < threshold(n):
            continue
        dead = set(clients) - active
        start = time.process_time()
        total = None
        for _ in active:
            vector = [bytes_to_ndarray(b) for b in masked]
            total = vector if total is None else parameters_addition(total, vector)
        total = parameters_mod(total, MODULUS)
        spent = time.process_time() - start
        collected = {nid: [] for nid in clients}
        for nid in active:
            request = {Key.ACTIVE_NODE_ID_LIST: sorted(active), Key.DEAD_NODE_ID_LIST: sorted(dead)}
            reply = mod._unmask(clients[nid], request)
            for owner, share in zip(reply[Key.NODE_ID_LIST], reply[Key.SHARE_LIST]):
                collected[owner].append(share)
        start = time.process_time()
        vector = remove_masks(total, keys, collected, active, n)
        _, vector = factor_extract(vector)
        dequantize(vector, CLIP, TARGET)
        spent += time.process_time() - start
        print(json.dumps({"side": "hub", "n": n, "d": d, "dropped": dropped, "cpu": spent}), flush=True)


def attack():
    """The server asks every client for both shares of the victim in one message; no client notices."""
    n, victim = 5, 3
    clients, keys, inbox, _ = federation(n)
    rng = np.random.default_rng(2)
    updates = {nid: rng.normal(0, 1, 1000).astype(np.float32) for nid in clients}
    masked = {nid: upload(clients[nid], inbox[nid], updates[nid], examples=100 * nid) for nid in clients}
    everyone = sorted(clients)
    own_shares, key_shares = [], []
    for nid in everyone:
        reply = mod._unmask(clients[nid], {Key.ACTIVE_NODE_ID_LIST: everyone, Key.DEAD_NODE_ID_LIST: [victim]})
        shares = [s for o, s in zip(reply[Key.NODE_ID_LIST], reply[Key.SHARE_LIST]) if o == victim]
        own_shares.append(shares[0])
        key_shares.append(shares[1])
    # Taking off the victim's own mask, then those it shares with everybody.
    vector = [bytes_to_ndarray(b) for b in masked[victim]]
    vector = remove_masks(vector, keys, {victim: own_shares}, {victim}, n)
    secret = combine_shares(key_shares)
    for other in set(keys) - {victim}:
        shared = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(keys[other][0]))
        mask = pseudo_rand_gen(shared, MODULUS, get_parameters_shape(vector))
        # The victim added this mask where its number is the larger one.
        vector = (parameters_subtraction if victim > other else parameters_addition)(vector, mask)
    weight, vector = factor_extract(parameters_mod(vector, MODULUS))
    recovered = dequantize(vector, CLIP, TARGET)[0] / (weight / TARGET)
    error = float(np.abs(recovered - updates[victim]).max())
    print(json.dumps({"attack": "victim in both lists", "weight": weight / TARGET * MAX_WEIGHT, "largest_error": error}))
    assert error < 1e-4, "the attack did not work: Flower changed"


if __name__ == "__main__":
    assert ndarray_to_bytes  # part of what the client functions use
    if sys.argv[1:2] == ["attack"]:
        attack()
    else:
        measure(int(sys.argv[2]), int(float(sys.argv[3]) * 1_000_000))
