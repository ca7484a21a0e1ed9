//! Bytes in flight: what calls may hold in memory, of one hospital and of all, before any of it is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use consilium_federation::SiteName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const KIB: usize = 1 << 10;

/// Bytes that calls of one kind hold.
pub(super) struct Scales {
    all: Arc<Semaphore>,
    /// What one hospital's calls may hold, in KiB.
    each: usize,
    /// By hospital; only accepted ones get here.
    of_one: Mutex<HashMap<SiteName, Arc<Semaphore>>>,
}

/// A call's bytes, free again when this goes.
#[allow(dead_code, reason = "held for its Drop")]
pub(super) struct Weight([Option<OwnedSemaphorePermit>; 2]);

impl Scales {
    /// For so many bytes in all, and of one hospital.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all / KIB)), each: each / KIB, of_one: Mutex::default() }
    }

    fn of(&self, site: &SiteName) -> Arc<Semaphore> {
        let mut known = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(site.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
    }

    /// Waits until there is room for so many bytes. What is heavier than one hospital may hold counts as that much.
    ///
    /// The semaphores are never closed; without a place a call would be unbounded, not wrong.
    pub(super) async fn take(&self, site: &SiteName, bytes: usize) -> Weight {
        let weight = u32::try_from(bytes.div_ceil(KIB).clamp(1, self.each)).unwrap_or(u32::MAX);
        // Its own first, so that one hospital that stalls holds nobody else up.
        let own = self.of(site).acquire_many_owned(weight).await.ok();
        Weight([own, self.all.clone().acquire_many_owned(weight).await.ok()])
    }

    /// As [`Self::take`], but only if there is room now.
    pub(super) fn try_take(&self, site: &SiteName, bytes: usize) -> Option<Weight> {
        let weight = u32::try_from(bytes.div_ceil(KIB).clamp(1, self.each)).unwrap_or(u32::MAX);
        let own = self.of(site).try_acquire_many_owned(weight).ok()?;
        let all = self.all.clone().try_acquire_many_owned(weight).ok()?;
        Some(Weight([Some(own), Some(all)]))
    }
}

/// How often fields stand in a protobuf message, without decoding it: `wanted` names them by their path of field
/// numbers. Entries of two bytes become whole structures when they are decoded, so they are counted before. `None` when
/// the bytes are no message; the decoder says why.
pub(super) fn count(message: &[u8], wanted: &[&[u32]]) -> Option<usize> {
    let mut counted = 0;
    let mut rest = message;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let field = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            0 => {
                varint(&mut rest)?;
                &[]
            }
            1 => take(&mut rest, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                take(&mut rest, length)?
            }
            5 => take(&mut rest, 4)?,
            _ => return None,
        };
        counted += wanted.iter().filter(|path| **path == [field]).count();
        let inner: Vec<&[u32]> =
            wanted.iter().filter(|path| path.len() > 1 && path[0] == field).map(|path| &path[1..]).collect();
        if !inner.is_empty() {
            counted += count(value, &inner)?;
        }
    }
    Some(counted)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use consilium_proto::v1;
    use futures::FutureExt as _;
    use prost::Message as _;

    use super::*;

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    /// A hospital whose calls stall must not stop the calls of every other one.
    #[tokio::test]
    async fn one_hospital_cannot_hold_all_there_is() {
        let scales = Scales::new(8 << 20, 2 << 20);
        let (alder, birch) = (site("alder"), site("birch"));
        let held = [scales.take(&alder, 1 << 20).await, scales.take(&alder, 1 << 20).await];
        assert!(scales.take(&alder, 1).now_or_never().is_none());
        assert!(scales.try_take(&alder, 1).is_none());
        assert!(scales.take(&birch, 1 << 20).now_or_never().is_some());
        drop(held);
        // More than it may hold counts as all that it may.
        let all = scales.take(&alder, 1 << 30).now_or_never().unwrap();
        assert!(scales.try_take(&alder, 1).is_none());
        drop(all);
        assert!(scales.try_take(&alder, 1).is_some());
    }

    /// A report of a megabyte made of empty entries would be a hundred when it is decoded.
    #[test]
    fn entries_are_counted_without_decoding_them() {
        let class = v1::ClassScore::default();
        let published = Some(v1::Score { cases: 1, classes: vec![class; 5] });
        let evaluation = Some(v1::Evaluation { published, ..Default::default() });
        let rounds = vec![v1::RoundReport { uid: "u".into(), evaluation, ..Default::default() }; 3];
        let report = v1::ReportRequest { revision: 7, rounds, rosters: vec!["x".into()], ..Default::default() };
        let bytes = report.encode_to_vec();
        assert_eq!(count(&bytes, &[&[4], &[4, 5, 3, 2]]), Some(3 + 15));
        assert_eq!(count(&bytes, &[&[6]]), Some(1));
        assert_eq!(count(&[0x22, 0x00, 0x22, 0x00], &[&[4]]), Some(2));
        for broken in [&[0x22][..], &[0x22, 0x05, 0x00], &[0xff; 11], &[0x23]] {
            assert_eq!(count(broken, &[&[4]]), None, "{broken:?}");
        }
    }
}
