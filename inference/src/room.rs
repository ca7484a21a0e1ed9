//! Memory for requests: taken before a body is read, given back as it is no longer needed.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit stands for so many bytes.
const UNIT: u64 = 1024;

/// What is left of the memory for requests.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

/// A part of the room; it is free again when this is dropped.
#[derive(Debug)]
pub struct Held(OwnedSemaphorePermit);

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

impl Room {
    /// Room for so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(Semaphore::new(units(bytes) as usize)))
    }

    /// Takes room at once or not at all.
    pub fn take(&self, bytes: u64) -> Option<Held> {
        Arc::clone(&self.0).try_acquire_many_owned(units(bytes)).ok().map(Held)
    }

    /// Makes a part of this room as large as so many bytes, at once or not at all. What is larger stays as it is.
    pub fn grow(&self, held: &mut Held, bytes: u64) -> bool {
        let more = units(bytes).saturating_sub(held.0.num_permits().try_into().unwrap_or(u32::MAX));
        match Arc::clone(&self.0).try_acquire_many_owned(more) {
            Ok(permits) => held.0.merge(permits),
            Err(_) => return false,
        }
        true
    }
}

impl Held {
    /// Gives back what is more than so many bytes.
    pub fn keep(&mut self, bytes: u64) {
        let more = self.0.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.0.split(more));
    }

    /// An answer's bytes, which hold the room until they are sent.
    pub fn around(self, bytes: Vec<u8>) -> Bytes {
        struct Sending {
            bytes: Vec<u8>,
            _room: Held,
        }
        impl AsRef<[u8]> for Sending {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Sending { bytes, _room: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body that is compressed takes room as it unfolds; were it not given back, that of each would be lost for good.
    #[test]
    fn room_grows_and_comes_back() {
        let room = Room::new(10 * UNIT);
        let mut held = room.take(2 * UNIT).unwrap();
        assert!(room.grow(&mut held, UNIT) && room.grow(&mut held, 6 * UNIT));
        assert!(room.take(5 * UNIT).is_none());
        assert!(!room.grow(&mut held, 11 * UNIT), "there is no more");
        drop(held);
        assert!(room.take(10 * UNIT).is_some());
    }

    /// If room were lost, the server would turn everybody away after some hours; if it were free too early, it would be
    /// killed.
    #[test]
    fn room_comes_back_when_the_answer_is_sent() {
        let room = Room::new(10 * UNIT);
        let mut held = room.take(8 * UNIT).unwrap();
        assert!(room.take(3 * UNIT).is_none());
        held.keep(4 * UNIT);
        let other = room.take(6 * UNIT).unwrap();
        let answer = held.around(vec![7; 5]);
        let part = answer.slice(1..3);
        drop((answer, other));
        assert!(room.take(7 * UNIT).is_none(), "a part of the answer is still to be sent");
        assert_eq!(part.as_ref(), [7, 7]);
        drop(part);
        assert!(room.take(10 * UNIT).is_some());
    }
}
