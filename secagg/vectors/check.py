#!/usr/bin/env python3
"""An independent implementation of Consilium's secure aggregation, checking the published transcripts.

Every transcript is recomputed from the hospitals' secrets: keys, session id, envelopes, shares, masks, digests,
signatures, survivors, seeds, sum and mean. It needs the `cryptography` package only.

    python3 secagg/vectors/check.py [FILE...]
"""

import json
import pathlib
import struct
import sys
from itertools import combinations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from reference import (
    CHUNK,
    MASK,
    OWN,
    V1,
    blake3,
    commit_seed,
    commit_share,
    derive,
    dh,
    encode,
    encode_head,
    f32,
    largest,
    lengthed,
    mask_elements,
    public,
    read_advert,
    read_attempt,
    read_entry,
    read_header,
    read_manifest,
    read_proof,
    read_reply,
    read_roster,
    read_seeds,
    read_shares,
    read_statement,
    sha256,
    shamir,
    signed,
    signed32,
    u32,
    u8,
    verify,
    words,
)


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
        body = [(head + at, min(CHUNK, self.spec["body"] - at)) for at in range(0, self.spec["body"], CHUNK)]
        return head, [(0, head), *body]

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
            body = encode(me["update"], me["weight"], spec["capacity"], spec["clip"])
            plain += [body[offset - head : offset - head + count] for offset, count in chunks[1:]]
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
        signers = []
        for text in self.messages["agreements"]:
            body, signature = signed(bytes.fromhex(text))
            self.equal(body, self.statement, "agreement")
            signers.append(self.signer(body, signature))
        self.equal(signers, sorted(set(signers) & set(self.masked)), "who agreed")
        if self.messages["proof"] is None:
            return
        body, signatures = read_proof(bytes.fromhex(self.messages["proof"]))
        self.equal(body, self.statement, "proof")
        for party, signature in signatures:
            verify(self.parties[party]["key"], body, signature)
            assert party in self.masked
        assert len({party for party, _ in signatures}) >= self.t

    def signer(self, body, signature):
        """The party whose key a signature fits: an agreement does not name it."""
        for i, party in enumerate(self.parties):
            try:
                verify(party["key"], body, signature)
                return i
            except InvalidSignature:
                continue
        raise AssertionError("an agreement that no party signed")

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
        mean = [f32(signed32(q) * step) for chunk in total[1:] for q in chunk]
        self.equal(mean, [f32(m) for m in outcome["mean"]], "mean")
        names = [self.case["sites"][i]["site"] for i in outcome["survivors"]]
        self.equal(names, [p["site"] for p in contributors], "survivors")
        scales = [top / struct.unpack("<d", raw)[0] if kind == 0 else 1.0 for kind, raw in self.spec["statistics"]]
        sums = [signed32(q) / scale for q, scale in zip(total[0][1:], scales)]
        self.equal(sums, outcome["statistics"], "statistics")
        bound = len(contributors) * self.spec["clip"] / (2 * top) / (weights / 2**20)
        # The published one has room for float64 roundings.
        assert 1 <= outcome["error_bound"] / bound <= 1 + 2e-9, "error bound"
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
