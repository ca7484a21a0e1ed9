"""Primitives, canonical bytes, messages and encoding of Consilium's secure aggregation, for check.py.

Written from docs/guides/secure-aggregation.md; shares no code with the Rust crate.
"""

import hashlib
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

V1 = "consilium/secagg/v1"
MASK, OWN = 0, 1
CHUNK = 1 << 20


# --- canonical bytes -------------------------------------------------------------------------------------------------


def u8(x):
    return struct.pack("<B", x)


def u16(x):
    return struct.pack("<H", x)


def u32(x):
    return struct.pack("<I", x)


def u64(x):
    return struct.pack("<Q", x)


def lengthed(x):
    x = x.encode() if isinstance(x, str) else x
    return u32(len(x)) + x


class Reader:
    """Reads one message; the tag must fit and nothing may be left over."""

    def __init__(self, data, tag):
        self.data, self.at = data, 0
        got = self.lengthed().decode()
        assert got == f"{V1}/{tag}", f"expected {tag}, got {got}"

    def take(self, n):
        assert self.at + n <= len(self.data), "truncated"
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self):
        return self.take(1)[0]

    def u16(self):
        return struct.unpack("<H", self.take(2))[0]

    def u32(self):
        return struct.unpack("<I", self.take(4))[0]

    def u64(self):
        return struct.unpack("<Q", self.take(8))[0]

    def f64(self):
        return struct.unpack("<d", self.take(8))[0]

    def lengthed(self):
        return self.take(self.u32())

    def many(self, read):
        return [read() for _ in range(self.u32())]

    def end(self):
        assert self.at == len(self.data), "bytes after the end"


def parse(data, tag, read):
    reader = Reader(data, tag)
    value = read(reader)
    reader.end()
    return value


def signed(data):
    return parse(data, "signed", lambda r: (r.lengthed(), r.take(64)))


def sha256(data):
    return hashlib.sha256(data).digest()


def verify(key, body, signature):
    Ed25519PublicKey.from_public_bytes(key).verify(signature, body)


# --- primitives that the standard library does not have --------------------------------------------------------------


def gf_mul(a, b):
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def gf_inv(a):
    result, power = 1, a
    for bit in range(8):
        if (254 >> bit) & 1:
            result = gf_mul(result, power)
        power = gf_mul(power, power)
    return result


def shamir(shares):
    """The secret behind {x: 32 bytes}: Lagrange interpolation at 0 in GF(2^8) mod x^8+x^4+x^3+x+1."""
    secret = bytearray(32)
    for x, share in shares.items():
        factor = 1
        for other in shares:
            if other != x:
                factor = gf_mul(factor, gf_mul(other, gf_inv(other ^ x)))
        for i, byte in enumerate(share):
            secret[i] ^= gf_mul(factor, byte)
    return bytes(secret)


IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)


def blake3_compress(chain, block, counter, length, flags):
    def rotate(x, n):
        return ((x >> n) | (x << (32 - n))) & 0xFFFFFFFF

    state = [*chain, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, length, flags]
    words = list(struct.unpack("<16I", block.ljust(64, b"\0")))

    def mix(a, b, c, d, x, y):
        for word, first, second in ((x, 16, 12), (y, 8, 7)):
            state[a] = (state[a] + state[b] + word) & 0xFFFFFFFF
            state[d] = rotate(state[d] ^ state[a], first)
            state[c] = (state[c] + state[d]) & 0xFFFFFFFF
            state[b] = rotate(state[b] ^ state[c], second)

    for _ in range(7):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i, words[2 * i], words[2 * i + 1])
        for i in range(4):
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, words[8 + 2 * i], words[9 + 2 * i])
        words = [words[p] for p in PERMUTATION]
    return [state[i] ^ state[i + 8] for i in range(8)] + [state[i + 8] ^ chain[i] for i in range(8)]


def blake3(data):
    def node(data, first_chunk, root):
        if len(data) <= 1024:
            blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
            chain = IV
            for i, block in enumerate(blocks):
                last = i == len(blocks) - 1
                flags = (1 if i == 0 else 0) | (2 if last else 0) | (8 if last and root else 0)
                chain = blake3_compress(chain, block, first_chunk, len(block), flags)[:8]
            return chain
        left = 1024
        while left * 2 < len(data):
            left *= 2
        halves = node(data[:left], first_chunk, False) + node(data[left:], first_chunk + left // 1024, False)
        return blake3_compress(IV, struct.pack("<16I", *halves), 0, 64, 4 | (8 if root else 0))[:8]

    return struct.pack("<8I", *node(data, 0, True))


assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def mask_elements(key, offset, count):
    assert offset % 4 == 0
    counter = (offset // 4).to_bytes(16, "big")
    stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(4 * count))
    return struct.unpack(f"<{count}I", stream)


# --- keys and commitments --------------------------------------------------------------------------------------------


def derive(secret, salt, label, parties=()):
    info = lengthed(V1) + lengthed(label) + bytes(parties)
    return HKDF(hashes.SHA256(), 32, salt, info).derive(secret)


def public(scalar):
    return X25519PrivateKey.from_private_bytes(scalar).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def dh(scalar, key):
    return X25519PrivateKey.from_private_bytes(scalar).exchange(X25519PublicKey.from_public_bytes(key))


def commit_seed(kind, sid, party, seed):
    return sha256(lengthed(f"{V1}/seed") + u8(kind) + sid + u8(party) + seed)


def commit_share(kind, sid, dealer, to, salt, share):
    return sha256(lengthed(f"{V1}/share") + u8(kind) + sid + u8(dealer) + u8(to) + salt + share)


# --- messages --------------------------------------------------------------------------------------------------------


def read_round(r):
    spec = {"federation": r.lengthed(), "study": r.lengthed(), "round": r.u64(), "purpose": r.u8()}
    spec |= {name: r.take(32) for name in ("subject", "plan", "schema", "roster")}
    spec |= {"capacity": r.u16(), "clip": r.f64(), "weighting": (r.u8(), r.u64())}
    spec["statistics"] = r.many(lambda: (r.u8(), r.take(8)))
    return spec | {"body": r.u64(), "colluders": r.u16(), "min_contributors": r.u16()}


def read_attempt(data):
    return parse(data, "attempt", lambda r: parse(r.lengthed(), "round", read_round) | {"attempt": r.u32()})


def read_roster(data):
    def entries(r):
        federation, version = r.lengthed(), r.u64()
        return federation, version, r.many(lambda: (r.lengthed(), r.take(32)))

    def outer(r):
        body = r.lengthed()
        return body, parse(body, "roster", entries), r.many(lambda: (r.take(32), r.take(64)))

    return parse(data, "signed-roster", outer)


def read_advert(body):
    names = ("attempt", "site", "enc_key", "mask_key", "nonce")
    fields = lambda r: (r.take(32), r.lengthed(), r.take(32), r.take(32), r.take(32))
    return dict(zip(names, parse(body, "advert", fields)))


def read_header(body):
    names = ("sid", "from", "mask_seed", "self_seed", "entries")
    fields = lambda r: (r.take(32), r.u8(), r.take(32), r.take(32), r.many(lambda: r.take(32)))
    return dict(zip(names, parse(body, "share-header", fields)))


def read_shares(data):
    return parse(data, "shares", lambda r: (r.lengthed(), r.many(r.lengthed)))


def read_entry(data):
    return parse(data, "share-entry", lambda r: (r.take(32), r.take(32), r.lengthed()))


def read_manifest(body):
    return parse(body, "upload", lambda r: (r.take(32), r.u8(), r.take(32), r.many(lambda: r.take(32))))


def read_statement(body):
    return parse(body, "survivors", lambda r: (r.take(32), r.take(32), list(r.lengthed())))


def read_proof(data):
    return parse(data, "survivor-proof", lambda r: (r.lengthed(), r.many(lambda: (r.u8(), r.take(64)))))


def read_reply(body):
    share = lambda r: lambda: (r.u8(), r.u8(), r.take(32), r.take(32))
    return parse(body, "unmask", lambda r: (r.take(32), r.u8(), r.take(32), r.many(share(r))))


def read_seeds(data):
    return parse(data, "seeds", lambda r: (r.take(32), r.many(lambda: (r.u8(), r.u8(), r.take(32)))))


# --- encoding --------------------------------------------------------------------------------------------------------


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def largest(capacity):
    return (2**31 - 1) // capacity


def encode(update, weight, capacity, clip):
    top = largest(capacity)
    factor = (weight / 2**20) * (top / clip)
    # Python's round() is to nearest, ties to even, as rint() is.
    return [round(max(-top, min(top, f32(u) * factor))) % 2**32 for u in update]


def encode_head(weight, statistics, kinds, capacity, size):
    head = [weight] + [0] * (size - 1)
    for i, ((kind, raw), value) in enumerate(zip(kinds, statistics)):
        scale = largest(capacity) / struct.unpack("<d", raw)[0] if kind == 0 else 1.0
        head[1 + i] = round(value * scale) % 2**32
    return head


def signed32(x):
    return x - 2**32 if x >= 2**31 else x


def words(hex_text):
    data = bytes.fromhex(hex_text)
    return list(struct.unpack(f"<{len(data) // 4}I", data))
