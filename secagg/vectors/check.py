#!/usr/bin/env python3
"""An independent implementation of Consilium's secure aggregation, checking the published transcripts.

Written from the specification in docs/guides/secure-aggregation.md, sharing no code with the Rust crate. It needs the
`cryptography` package only. Every transcript is recomputed from the hospitals' secrets: keys, session id, envelopes,
shares, masks, digests, signatures, survivors, seeds, sum and mean.

    python3 secagg/vectors/check.py [FILE...]
"""

import hashlib
import json
import pathlib
import struct
import sys
from itertools import combinations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
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


# --- one transcript --------------------------------------------------------------------------------------------------


class Case:
    def __init__(self, case):
        self.case, self.messages = case, case["messages"]
        attempt = bytes.fromhex(case["attempt"])
        self.attempt, self.spec = attempt, read_attempt(attempt)
        self.digest = sha256(attempt)
        self.checks = 0

    def equal(self, got, expected, what):
        self.checks += 1
        assert got == expected, f"{what}: {got!r} instead of {expected!r}"

    def run(self):
        self.equal(self.digest.hex(), self.case["attempt_digest"], "attempt digest")
        self.roster()
        self.adverts()
        outcome = self.case["outcome"]
        if len(self.parties) < 3:
            self.equal(outcome.get("burned"), "Advertise", "too few to open")
            return
        self.session()
        self.shares()
        if len(self.dealt) < self.needed:
            self.equal(outcome.get("burned"), "Share", "too few dealt")
            return
        self.uploads()
        if len(self.masked) < self.needed:
            self.equal(outcome.get("burned"), "Upload", "too few uploaded")
            return
        self.survivors()
        if self.messages["proof"] is None:
            assert len(self.messages["agreements"]) < self.t
            self.equal(outcome.get("burned"), "Agree", "too few signed")
            return
        self.replies()
        if len(self.released) < self.t:
            self.equal(outcome.get("burned"), "Unmask", "too few released")
            return
        self.sum(outcome)

    def roster(self):
        body, (federation, _, entries), signatures = read_roster(bytes.fromhex(self.case["roster"]))
        governance = self.case["governance"]
        self.equal(federation.decode(), governance["federation"], "federation")
        valid = set()
        for key, signature in signatures:
            assert key.hex() in governance["keys"], "signed by a key that is not pinned"
            verify(key, body, signature)
            valid.add(key)
        assert len(valid) >= governance["required"]
        self.equal(self.spec["roster"], sha256(body), "roster digest")
        self.keys = {site.decode(): key for site, key in entries}
        for site in self.case["sites"]:
            self.equal(self.keys[site["site"]].hex(), site["identity_key"], "identity")

    def adverts(self):
        self.parties, self.bodies = [], []
        for text in self.messages["adverts"]:
            body, signature = signed(bytes.fromhex(text))
            advert = read_advert(body)
            name = advert["site"].decode()
            verify(self.keys[name], body, signature)
            self.equal(advert["attempt"], self.digest, "advert's attempt")
            site = next(s for s in self.case["sites"] if s["site"] == name)
            secrets = {k: bytes.fromhex(v) for k, v in site["secrets"].items()}
            scalar = derive(secrets["mask_seed"], self.digest, "mask-scalar")
            self.equal(advert["enc_key"], public(secrets["enc_scalar"]), "envelope key")
            self.equal(advert["mask_key"], public(scalar), "mask key")
            self.parties.append(advert | site | {"secret": secrets, "scalar": scalar, "key": self.keys[name]})
            self.bodies.append(body)
        self.equal([p["site"] for p in self.parties], sorted(p["site"] for p in self.parties), "order of adverts")

    def session(self):
        text = lengthed(f"{V1}/session") + lengthed(self.attempt) + u32(len(self.bodies))
        self.sid = sha256(text + b"".join(lengthed(b) for b in self.bodies))
        self.equal(self.sid.hex(), self.messages["sid"], "sid")
        self.n = len(self.parties)
        self.t = 2 * self.n // 3 + 1
        self.needed = max(self.t, self.spec["min_contributors"], self.spec["colluders"] + 2)
        assert 2 * self.t > self.n + self.spec["colluders"]

    def shares(self):
        self.dealt = {}
        for text in self.messages["shares"]:
            header_bytes, entries = read_shares(bytes.fromhex(text))
            body, signature = signed(header_bytes)
            header = read_header(body)
            dealer = header["from"]
            verify(self.parties[dealer]["key"], body, signature)
            self.equal(header["sid"], self.sid, "session of shares")
            self.equal(header["entries"], [sha256(e) for e in entries], "entries")
            self.dealt[dealer] = (body, header, [read_entry(e) for e in entries])
            self.open_shares(dealer, header, self.dealt[dealer][2])

    def open_shares(self, dealer, header, entries):
        me = self.parties[dealer]
        opened = {}
        for to, (mask_commit, own_commit, envelope) in enumerate(entries):
            if to == dealer:
                self.equal(envelope, b"", "own envelope")
                continue
            shared = dh(self.parties[to]["secret"]["enc_scalar"], me["enc_key"])
            self.equal(shared, dh(me["secret"]["enc_scalar"], self.parties[to]["enc_key"]), "shared secret")
            key = derive(shared, self.sid, "envelope", (dealer, to))
            aad = lengthed(f"{V1}/envelope") + self.sid + u8(dealer) + u8(to)
            plain = AESGCM(key).decrypt(envelope[:12], envelope[12:], aad)
            mask, own, mask_salt, own_salt = (plain[i : i + 32] for i in range(0, 128, 32))
            self.equal(mask_commit, commit_share(MASK, self.sid, dealer, to, mask_salt, mask), "mask share")
            self.equal(own_commit, commit_share(OWN, self.sid, dealer, to, own_salt, own), "own share")
            opened[to + 1] = (mask, own)
        for kind, seed, field in ((MASK, "mask_seed", "mask_seed"), (OWN, "self_seed", "self_seed")):
            secret = me["secret"][seed]
            self.equal(header[field], commit_seed(kind, self.sid, dealer, secret), f"commitment to {seed}")
            # The dealer's own share is not among these, so n = t leaves none to try.
            for chosen in list(combinations(sorted(opened), self.t))[:3]:
                self.equal(shamir({x: opened[x][kind] for x in chosen}), secret, f"shares of {seed}")

    def layout(self):
        head = -(-(1 + len(self.spec["statistics"])) // 16) * 16
        assert self.spec["body"] <= CHUNK, "these vectors have one body chunk"
        return head, [(0, head), (head, self.spec["body"])]

    def pair_key(self, i, j):
        low, high = min(i, j), max(i, j)
        shared = dh(self.parties[i]["scalar"], self.parties[j]["mask_key"])
        return derive(shared, self.sid, "pair", (low, high))

    def view(self):
        text = lengthed(f"{V1}/view") + self.sid
        return sha256(text + b"".join(u8(d) + sha256(body) for d, (body, _, _) in sorted(self.dealt.items())))

    def uploads(self):
        head, chunks = self.layout()
        names = {p["site"]: i for i, p in enumerate(self.parties)}
        self.masked, self.plain = {}, {}
        for upload in self.messages["uploads"]:
            i = names[self.case["sites"][upload["party"]]["site"]]
            me, spec = self.parties[i], self.spec
            plain = [encode_head(me["weight"], me["statistics"], spec["statistics"], spec["capacity"], head)]
            plain.append(encode(me["update"], me["weight"], spec["capacity"], spec["clip"]))
            self.equal(plain, [words(c) for c in me["encoded"]], "encoding")
            masks = [(1, derive(me["secret"]["self_seed"], self.sid, "self", (i,)))]
            masks += [(1 if j > i else -1, self.pair_key(i, j)) for j in self.dealt if j != i]
            for chunk, (offset, count), text in zip(plain, chunks, upload["masked"]):
                out = list(chunk)
                for sign, key in masks:
                    out = [(a + sign * m) % 2**32 for a, m in zip(out, mask_elements(key, offset, count))]
                self.equal(out, words(text), f"masked chunk of {me['site']}")
            body, signature = signed(bytes.fromhex(upload["manifest"]))
            verify(me["key"], body, signature)
            digests = [blake3(bytes.fromhex(c)) for c in upload["masked"]]
            self.equal(read_manifest(body), (self.sid, i, self.view(), digests), "manifest")
            self.masked[i] = [words(c) for c in upload["masked"]]
            self.plain[i] = plain

    def survivors(self):
        self.statement = bytes.fromhex(self.messages["statement"])
        self.equal(read_statement(self.statement), (self.sid, self.view(), sorted(self.masked)), "survivors")
        for text in self.messages["agreements"]:
            self.equal(signed(bytes.fromhex(text))[0], self.statement, "agreement")
        if self.messages["proof"] is None:
            return
        body, signatures = read_proof(bytes.fromhex(self.messages["proof"]))
        self.equal(body, self.statement, "proof")
        for party, signature in signatures:
            verify(self.parties[party]["key"], body, signature)
            assert party in self.masked
        assert len({party for party, _ in signatures}) >= self.t

    def replies(self):
        self.released = {}
        for text in self.messages["replies"]:
            body, signature = signed(bytes.fromhex(text))
            sid, party, statement, shares = read_reply(body)
            verify(self.parties[party]["key"], body, signature)
            self.equal((sid, statement), (self.sid, sha256(self.statement)), "reply")
            due = [(d, OWN if d in self.masked else MASK) for d in sorted(self.dealt)]
            self.equal([(of, kind) for of, kind, _, _ in shares], due, "exactly one share per hospital")
            for of, kind, share, salt in shares:
                commitment = self.dealt[of][2][party][kind]
                self.equal(commitment, commit_share(kind, self.sid, of, party, salt, share), "released share")
            self.released[party] = {of: share for of, _, share, _ in shares}

    def sum(self, outcome):
        assert "burned" not in outcome, outcome
        sid, seeds = read_seeds(bytes.fromhex(outcome["seeds"]))
        self.equal(sid, self.sid, "session of seeds")
        total = [[sum(column) % 2**32 for column in zip(*chunks)] for chunks in zip(*self.masked.values())]
        _, chunks = self.layout()
        for of, kind, seed in seeds:
            chosen = sorted(self.released)[: self.t]
            self.equal(seed, shamir({p + 1: self.released[p][of] for p in chosen}), "reconstructed seed")
            self.equal(seed, self.parties[of]["secret"]["self_seed" if kind == OWN else "mask_seed"], "seed")
            if kind == OWN:
                masks = [(-1, derive(seed, self.sid, "self", (of,)))]
            else:
                masks = [(-1 if of > i else 1, self.pair_key(of, i)) for i in self.masked]
            for k, (offset, count) in enumerate(chunks):
                for sign, key in masks:
                    added = zip(total[k], mask_elements(key, offset, count))
                    total[k] = [(a + sign * m) % 2**32 for a, m in added]
        self.equal(total, [words(c) for c in outcome["sum"]], "sum")
        plain = [[sum(column) % 2**32 for column in zip(*chunks)] for chunks in zip(*self.plain.values())]
        self.equal(total, plain, "sum of the encoded updates")
        self.mean(total, outcome)

    def mean(self, total, outcome):
        contributors = [self.parties[i] for i in sorted(self.masked)]
        weights = sum(p["weight"] for p in contributors)
        self.equal((total[0][0], outcome["weight_sum"]), (weights, weights), "sum of weights")
        top = largest(self.spec["capacity"])
        step = self.spec["clip"] / top / (weights / 2**20)
        mean = [f32(signed32(q) * step) for q in total[1]]
        self.equal(mean, [f32(m) for m in outcome["mean"]], "mean")
        bound = len(contributors) * self.spec["clip"] / (2 * top) / (weights / 2**20)
        for k, got in enumerate(mean):
            exact = sum(p["weight"] * f32(p["update"][k]) for p in contributors) / weights
            assert abs(got - exact) <= bound * (1 + 1e-9) + abs(exact) * 2**-23, f"coordinate {k} beyond the bound"


def check_primitives(content):
    checks = 0
    for mask in content["masks"]:
        got = list(mask_elements(bytes.fromhex(mask["key"]), mask["offset"], len(mask["elements"])))
        assert got == mask["elements"], f"mask at {mask['offset']}"
        checks += 1
    for encoding in content["encodings"]:
        got = encode(encoding["update"], encoding["weight"], encoding["n"], encoding["clip"])
        assert got == encoding["elements"], f"encoding for n = {encoding['n']}"
        checks += 1
    return checks


def main():
    here = pathlib.Path(__file__).parent
    files = [pathlib.Path(a) for a in sys.argv[1:]] or sorted(here.glob("*.json"))
    assert files, "no vectors found"
    for path in files:
        content = json.loads(path.read_text())
        assert content["format"] == V1
        if "cases" not in content:
            print(f"{path.name}: {check_primitives(content)} primitives agree")
            continue
        for case in content["cases"]:
            checker = Case(case)
            checker.run()
            lost = case["vanishes"]
            what = "nobody lost" if lost is None else f"site 1 lost {lost['moment']}"
            end = f"burned in step {case['outcome']['burned']}" if "burned" in case["outcome"] else "summed"
            print(f"{path.name}: {what}: {end}, {checker.checks} values agree")


if __name__ == "__main__":
    if not __debug__:
        sys.exit("FAILED: run without -O, which removes the checks")
    try:
        main()
    except (AssertionError, InvalidSignature) as error:
        sys.exit(f"FAILED: {type(error).__name__}: {error}")
