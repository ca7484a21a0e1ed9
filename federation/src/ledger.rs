//! A hospital's ledger as a chain of lines, and the file that shows it to others: anyone can check it, with no cluster and
//! without whoever wrote it.
//!
//! The file: a [`Header`]; each entry as it is stored, a line of JSON; behind some of them a [`Countersigned`], the hub's
//! signature over the end that the ledger had there; last the [`End`].

use ed25519_dalek::{Signature, VerifyingKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::SiteName;
use crate::report::LedgerEnd;

/// The form of the file.
pub const FORM: &str = "consilium/ledger-file/v1";
/// Longest line that is read.
pub const LONGEST_LINE: usize = 1 << 20;

/// The head of a ledger that holds nothing.
pub fn genesis() -> Digest {
    Digest::of(b"consilium/ledger/v1")
}

/// What every entry says of its place. All else in it is for people.
#[derive(Deserialize)]
struct Link {
    seq: u64,
    prev: Digest,
}

/// How far a chain was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain(LedgerEnd);

impl Chain {
    /// A chain that goes on from here.
    pub const fn from(end: LedgerEnd) -> Self {
        Self(end)
    }

    /// A chain from its beginning.
    pub fn whole() -> Self {
        Self(LedgerEnd { entries: 0, head: genesis() })
    }

    /// Where it stands.
    pub const fn end(&self) -> LedgerEnd {
        self.0
    }

    /// Follows the next entry, by its bytes as they are stored.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), Break> {
        let link: Link = serde_json::from_slice(bytes).map_err(|error| Break::NoEntry(error.to_string()))?;
        let expected = self.0.entries.saturating_add(1);
        if link.seq != expected {
            return Err(Break::Number { expected, found: link.seq });
        }
        if link.prev != self.0.head {
            return Err(Break::Hash { entry: link.seq });
        }
        self.0 = LedgerEnd { entries: expected, head: Digest::of(bytes) };
        Ok(())
    }
}

/// Where a ledger does not hold together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// Not an entry at all.
    #[error("it is no entry of a ledger ({0})")]
    NoEntry(String),
    /// One is missing, or two have changed places.
    #[error(
        "it is entry {found} where entry {expected} has to follow: entries were removed, added or put in another order"
    )]
    Number {
        /// By what came before.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// The entry before, or this one's link to it, is not what was written.
    #[error(
        "entry {entry} does not hold the hash of the entry before it: that one, or this one, was changed after it was written"
    )]
    Hash {
        /// Its number.
        entry: u64,
    },
    /// The first line is not a header.
    #[error("it is not the first line of a ledger file ({0})")]
    NoHeader(String),
    /// The hub signed another end.
    #[error(
        "the hub countersigned {signed} as the hash of entry {entry}, which here is {found}: what stands up to here was changed since"
    )]
    OtherHead {
        /// Entries up to it.
        entry: u64,
        /// What was signed.
        signed: Digest,
        /// What is here.
        found: Digest,
    },
    /// Not by the key that was given.
    #[error("the countersignature over entry {0} is not by the hub's key that was given")]
    Signature(u64),
    /// The last line does not say what was read.
    #[error(
        "the ledger ends with entry {said} by its last line and with entry {found} here: entries at the end are missing or were changed"
    )]
    End {
        /// By the last line.
        said: u64,
        /// What was read.
        found: u64,
    },
    /// There is no last line.
    #[error("the file ends behind entry {0} without its last line: it was cut off")]
    CutOff(u64),
    /// Something follows the last line.
    #[error("something follows the line that ends the ledger")]
    Beyond,
    /// Longer than any line.
    #[error("the line is longer than {LONGEST_LINE} bytes")]
    Long,
    /// What the reader knows from elsewhere is not here.
    #[error(
        "the ledger had the head {0} when it was seen elsewhere, and this file holds no entry of that hash: it is older, was cut off, or is another ledger"
    )]
    Unknown(Digest),
}

/// First line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// [`FORM`].
    pub form: String,
    /// Whose ledger.
    pub site: SiteName,
    /// What stands before the first entry: nothing, or entries that the hospital has removed by its own rule.
    pub before: LedgerEnd,
}

/// The hub's word that it was shown this end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Countersigned {
    /// The end.
    pub end: LedgerEnd,
    /// Ed25519 over [`LedgerEnd::signed_bytes`], hexadecimal.
    pub signature: String,
    /// When it came.
    pub at: Timestamp,
}

impl Countersigned {
    /// Whether a key made the signature, for this hospital.
    pub fn is_by(&self, key: &VerifyingKey, site: &SiteName) -> bool {
        let raw = hex::decode(&self.signature).unwrap_or_default();
        let signature = Signature::from_slice(&raw);
        signature.is_ok_and(|signature| key.verify_strict(&self.end.signed_bytes(site), &signature).is_ok())
    }
}

/// Lines that are no entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mark {
    /// A countersignature over what stands before it.
    Countersigned(Countersigned),
    /// The last line.
    End(LedgerEnd),
}

/// What a file was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whose ledger.
    pub site: SiteName,
    /// What stands before its first entry.
    pub before: LedgerEnd,
    /// Its end.
    pub end: LedgerEnd,
    /// Countersignatures, and whether the key was at hand that they were checked by.
    pub countersignatures: u64,
    /// The newest of them.
    pub newest: Option<Countersigned>,
    /// They were checked by the hub's key.
    pub checked: bool,
}

/// Reads a file line by line.
#[derive(Debug)]
pub struct Reading {
    key: Option<VerifyingKey>,
    sought: Vec<Digest>,
    found: Option<(Header, Chain)>,
    countersignatures: u64,
    newest: Option<Countersigned>,
    ended: bool,
}

impl Reading {
    /// Begins. `key`: the hub's; `sought`: heads of this ledger that are known from elsewhere.
    pub const fn new(key: Option<VerifyingKey>, sought: Vec<Digest>) -> Self {
        Self { key, sought, found: None, countersignatures: 0, newest: None, ended: false }
    }

    /// Takes the next line, without its end; true if it is an entry.
    pub fn line(&mut self, bytes: &[u8]) -> Result<bool, Break> {
        if bytes.len() > LONGEST_LINE {
            return Err(Break::Long);
        }
        if self.ended {
            return Err(Break::Beyond);
        }
        let Some((header, chain)) = &mut self.found else {
            let header: Header = serde_json::from_slice(bytes).map_err(|error| Break::NoHeader(error.to_string()))?;
            if header.form != FORM {
                return Err(Break::NoHeader(format!("its form is {:?} and not {FORM:?}", header.form)));
            }
            let chain = Chain::from(header.before);
            self.sought.retain(|head| *head != header.before.head);
            self.found = Some((header, chain));
            return Ok(false);
        };
        let here = chain.end();
        match serde_json::from_slice::<Mark>(bytes) {
            Ok(Mark::Countersigned(by_hub)) => {
                let entry = by_hub.end.entries;
                if by_hub.end != here {
                    return Err(Break::OtherHead { entry, signed: by_hub.end.head, found: here.head });
                }
                if self.key.is_some_and(|key| !by_hub.is_by(&key, &header.site)) {
                    return Err(Break::Signature(entry));
                }
                self.countersignatures += 1;
                self.newest = Some(by_hub);
                Ok(false)
            }
            Ok(Mark::End(end)) => {
                self.ended = true;
                let right = end == here;
                if right { Ok(false) } else { Err(Break::End { said: end.entries, found: here.entries }) }
            }
            Err(_) => {
                chain.follow(bytes)?;
                let here = chain.end().head;
                self.sought.retain(|head| *head != here);
                Ok(true)
            }
        }
    }

    /// Whether the first line has been read, and the hospital that it names.
    pub fn site(&self) -> Option<&SiteName> {
        self.found.as_ref().map(|(header, _)| &header.site)
    }

    /// Ends.
    pub fn finish(self) -> Result<Verified, Break> {
        let (header, chain) = self.found.ok_or_else(|| Break::NoHeader("the file is empty".into()))?;
        if !self.ended {
            return Err(Break::CutOff(chain.end().entries));
        }
        if let Some(head) = self.sought.first() {
            return Err(Break::Unknown(*head));
        }
        Ok(Verified {
            site: header.site,
            before: header.before,
            end: chain.end(),
            countersignatures: self.countersignatures,
            newest: self.newest,
            checked: self.key.is_some(),
        })
    }
}

/// Checks a whole file; where it breaks, answers with the number of the line.
pub fn verify<'a>(lines: impl IntoIterator<Item = &'a [u8]>, mut reading: Reading) -> Result<Verified, (usize, Break)> {
    let mut number = 0;
    for line in lines {
        number += 1;
        reading.line(line).map_err(|why| (number, why))?;
    }
    reading.finish().map_err(|why| (number, why))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn site() -> SiteName {
        "alder".parse().unwrap()
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[5; 32])
    }

    fn countersigned(end: LedgerEnd, by: &SigningKey) -> String {
        let signature = hex::encode(by.sign(&end.signed_bytes(&site())).to_bytes());
        let mark = Countersigned { end, signature, at: Timestamp::UNIX_EPOCH };
        serde_json::to_string(&Mark::Countersigned(mark)).unwrap()
    }

    /// A file of so many entries, countersigned behind every third.
    fn file(entries: u64) -> Vec<String> {
        let mut chain = Chain::whole();
        let header = Header { form: FORM.into(), site: site(), before: chain.end() };
        let mut lines = vec![serde_json::to_string(&header).unwrap()];
        for seq in 1..=entries {
            let entry = json!({"seq": seq, "prev": chain.end().head, "entry": {"event": "NewEpoch", "old": seq}});
            chain.follow(entry.to_string().as_bytes()).unwrap();
            lines.push(entry.to_string());
            if seq % 3 == 0 {
                lines.push(countersigned(chain.end(), &key()));
            }
        }
        lines.push(serde_json::to_string(&Mark::End(chain.end())).unwrap());
        lines
    }

    fn check(lines: &[String]) -> Result<Verified, (usize, Break)> {
        verify(lines.iter().map(String::as_bytes), Reading::new(Some(key().verifying_key()), vec![]))
    }

    /// An auditor with the file alone is told that it holds, how far, and whose word stands behind it.
    #[test]
    fn a_whole_file_holds() {
        let found = check(&file(7)).unwrap();
        assert_eq!((found.end.entries, found.countersignatures, found.checked), (7, 2, true));
        assert_eq!(found.newest.unwrap().end.entries, 6);
        assert_eq!(check(&file(0)).unwrap().end.head, genesis());
    }

    proptest! {
        /// Whoever takes lines out, changes one, or lets two change places is found, and where: whatever the line.
        #[test]
        fn what_was_cut_changed_or_reordered_is_found_where_it_is(
            entries in 2_u64..20, at in any::<prop::sample::Index>(), way in 0_u8..4, letter in any::<prop::sample::Index>()
        ) {
            let whole = file(entries);
            let at = at.index(whole.len() - 1);
            let mut lines = whole.clone();
            match way {
                0 => drop(lines.remove(at)),
                1 => lines.swap(at, at + 1),
                2 => lines.truncate(at + 1),
                _ => {
                    let digits: Vec<usize> = lines[at].char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(i, _)| i).collect();
                    let place = digits[letter.index(digits.len())];
                    let other = if lines[at].as_bytes()[place] == b'1' { "2" } else { "1" };
                    lines[at].replace_range(place..=place, other);
                }
            }
            // A countersignature that is taken out is not missed; all else is.
            let dropped = way == 0 && whole[at].starts_with("{\"countersigned\"");
            // Nobody signs when a countersignature came.
            let when = way == 3 && whole[at].contains("countersigned") && !lines[at].contains("1970-01-01T00:00:00Z");
            match check(&lines) {
                Ok(_) => prop_assert!(dropped || when, "{at} {way}"),
                Err((line, _)) => {
                    prop_assert!(!dropped, "{at}");
                    // Found at the line itself, at the next that is tied to it, or at the end where that is missing.
                    prop_assert!(line > at && line <= at + 3, "line {line} for {at}, way {way}");
                }
            }
        }
    }

    /// A hospital's administrator who writes a whole new ledger, which holds together, is found by what the hub signed, and
    /// by any head that somebody noted elsewhere.
    #[test]
    fn a_ledger_that_was_written_anew_is_found_by_what_others_saw() {
        let (old, mut new) = (file(4), file(4));
        let mut chain = Chain::whole();
        for (seq, line) in (1..=4_u64).zip([1, 2, 3, 5]) {
            new[line] = json!({"seq": seq, "prev": chain.end().head, "entry": {"event": "NewEpoch", "old": "other"}})
                .to_string();
            chain.follow(new[line].as_bytes()).unwrap();
        }
        new[6] = serde_json::to_string(&Mark::End(chain.end())).unwrap();
        assert!(matches!(check(&new), Err((5, Break::OtherHead { entry: 3, .. }))));
        // Without the countersignature it holds together; a head that was noted elsewhere tells.
        new.remove(4);
        check(&new).unwrap();
        let noted = check(&old).unwrap().end.head;
        let lines = || new.iter().map(String::as_bytes);
        assert_eq!(verify(lines(), Reading::new(None, vec![noted])), Err((6, Break::Unknown(noted))));
        // And one that another key countersigned.
        let end = chain.end();
        new.insert(5, countersigned(end, &SigningKey::from_bytes(&[6; 32])));
        assert_eq!(check(&new), Err((6, Break::Signature(4))));
    }
}
