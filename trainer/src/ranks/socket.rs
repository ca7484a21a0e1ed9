//! Ranks over TCP on the loopback interface: rank 0 adds what the others send, in their order, and sends it back. For
//! CPUs and a few megabytes of gradients; cards that are wired together want their own transport behind the same trait.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{RankError, Ranks};

/// How long a rank may be silent within a training: the slowest step of the slowest one, with room. A rank that ends is
/// noticed at once by its socket.
const SILENT: Duration = Duration::from_secs(300);
/// How long ranks may take to meet: all begin together, and the first has its scans to open.
const MEET: Duration = Duration::from_secs(60);
/// Pause between two tries to meet.
const AGAIN: Duration = Duration::from_millis(20);
/// Values that are sent and added at a time.
const PIECE: usize = 1 << 16;

/// The ranks, as one of them sees them.
#[derive(Debug)]
pub struct Sockets {
    rank: usize,
    count: usize,
    /// Of rank 0: all others by rank. Of the others: rank 0.
    peers: Vec<(usize, TcpStream)>,
    /// Sums made.
    sums: u32,
}

impl Sockets {
    /// By torchrun's variables; `None` where there is one rank, or none is spoken of.
    pub fn of_environment() -> Result<Option<Self>, RankError> {
        let number = |name: &'static str, rule: &'static str| -> Result<Option<usize>, RankError> {
            let Some(value) = std::env::var_os(name) else { return Ok(None) };
            let value = value.to_string_lossy().into_owned();
            value.parse().map(Some).map_err(|_| RankError::Variable { name, value, rule })
        };
        let Some(count) = number("WORLD_SIZE", "a number of ranks")?.filter(|count| *count > 1) else {
            return Ok(None);
        };
        let rule = "a number below WORLD_SIZE";
        let rank = number("RANK", rule)?.filter(|rank| *rank < count);
        let value = || std::env::var("RANK").unwrap_or_default();
        let rank = rank.ok_or_else(|| RankError::Variable { name: "RANK", value: value(), rule })?;
        let rule = "the address and port where ranks meet";
        let address = format!(
            "{}:{}",
            std::env::var("MASTER_ADDR").unwrap_or_default(),
            std::env::var("MASTER_PORT").unwrap_or_default()
        );
        let meeting = address.parse().map_err(|_| RankError::Variable {
            name: "MASTER_ADDR:MASTER_PORT",
            value: address,
            rule,
        })?;
        Self::meet(rank, count, meeting).map(Some)
    }

    /// Meets the others.
    pub fn meet(rank: usize, count: usize, at: SocketAddr) -> Result<Self, RankError> {
        let until = Instant::now() + MEET;
        let mut peers = Vec::new();
        if rank == 0 {
            let lost = |reason: String| RankError::Lost { rank: 0, other: 1, reason };
            let listener = TcpListener::bind(at).map_err(|e| lost(format!("{at} cannot be listened on: {e}")))?;
            listener.set_nonblocking(true).map_err(|e| lost(e.to_string()))?;
            while peers.len() + 1 < count {
                match listener.accept() {
                    Ok((stream, _)) => peers.extend(greeted(stream, count)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => std::thread::sleep(AGAIN),
                    Err(e) => return Err(lost(format!("{} of {count} ranks came: {e}", peers.len() + 1))),
                }
            }
            peers.sort_by_key(|(rank, _)| *rank);
            if let Some((at, _)) = peers.iter().enumerate().find(|(at, (other, _))| at + 1 != *other) {
                let reason = "two ranks say that they are one".to_owned();
                return Err(RankError::OutOfStep { rank: 0, other: at + 1, reason });
            }
        } else {
            let lost = |reason: String| RankError::Lost { rank, other: 0, reason };
            let mut stream = loop {
                match TcpStream::connect(at) {
                    Ok(stream) => break stream,
                    Err(_) if Instant::now() < until => std::thread::sleep(AGAIN),
                    Err(e) => return Err(lost(format!("it does not listen on {at}: {e}"))),
                }
            };
            set_limits(&stream).and_then(|()| stream.write_all(&word(rank))).map_err(|e| lost(e.to_string()))?;
            peers.push((0, stream));
        }
        Ok(Self { rank, count, peers, sums: 0 })
    }

    /// What precedes values: which sum, and how many of them.
    fn head(&self, values: usize) -> [u8; 8] {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&self.sums.to_le_bytes());
        head[4..].copy_from_slice(&word(values));
        head
    }
}

/// Numbers here are ranks and lengths, all below 2^32.
fn word(number: usize) -> [u8; 4] {
    (number as u32).to_le_bytes()
}

fn set_limits(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENT))?;
    stream.set_write_timeout(Some(SILENT))
}

/// A rank that said who it is. Whoever else connects is not listened to.
fn greeted(mut stream: TcpStream, count: usize) -> Option<(usize, TcpStream)> {
    let mut rank = [0; 4];
    set_limits(&stream).and_then(|()| stream.read_exact(&mut rank)).ok()?;
    let rank = u32::from_le_bytes(rank) as usize;
    (1..count).contains(&rank).then_some((rank, stream))
}

fn send(stream: &mut TcpStream, head: [u8; 8], values: &[f32]) -> std::io::Result<()> {
    stream.write_all(&head)?;
    for piece in values.chunks(PIECE) {
        let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
        stream.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads as many values as there are, if they are of this sum; `take` gets each with what stands at its place.
fn receive(stream: &mut TcpStream, head: [u8; 8], values: &mut [f32], take: fn(&mut f32, f32)) -> std::io::Result<()> {
    let mut found = [0; 8];
    stream.read_exact(&mut found)?;
    if found != head {
        let part = |of: &[u8; 8], at: usize| u32::from_le_bytes([of[at], of[at + 1], of[at + 2], of[at + 3]]);
        let text = |of: &[u8; 8]| format!("sum {} of {} values", part(of, 0), part(of, 4));
        let what = format!("{} where {} was due", text(&found), text(&head));
        return Err(std::io::Error::new(ErrorKind::InvalidData, what));
    }
    let mut bytes = vec![0; PIECE * 4];
    for piece in values.chunks_mut(PIECE) {
        let bytes = &mut bytes[..piece.len() * 4];
        stream.read_exact(bytes)?;
        for (value, bytes) in piece.iter_mut().zip(bytes.as_chunks::<4>().0) {
            take(value, f32::from_le_bytes(*bytes));
        }
    }
    Ok(())
}

impl Ranks for Sockets {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), RankError> {
        let (rank, head) = (self.rank, self.head(values.len()));
        self.sums = self.sums.wrapping_add(1);
        let failed = |other: usize, e: std::io::Error| {
            let reason = e.to_string();
            match e.kind() {
                ErrorKind::InvalidData => RankError::OutOfStep { rank, other, reason },
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    RankError::Lost { rank, other, reason: format!("silent for {} s", SILENT.as_secs()) }
                }
                _ => RankError::Lost { rank, other, reason },
            }
        };
        if rank != 0 {
            // Safety of the loop: there is one peer.
            for (other, stream) in &mut self.peers {
                send(stream, head, values).map_err(|e| failed(*other, e))?;
                receive(stream, head, values, |value, sum| *value = sum).map_err(|e| failed(*other, e))?;
            }
            return Ok(());
        }
        for (other, stream) in &mut self.peers {
            receive(stream, head, values, |value, add| *value += add).map_err(|e| failed(*other, e))?;
        }
        for (other, stream) in &mut self.peers {
            send(stream, head, values).map_err(|e| failed(*other, e))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_port() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn meet(count: usize) -> Vec<Sockets> {
        let at = free_port();
        let others: Vec<_> =
            (0..count).map(|rank| std::thread::spawn(move || Sockets::meet(rank, count, at))).collect();
        others.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
    }

    /// Ranks whose sums differ in a bit train different models from then on, and nobody notices.
    #[test]
    fn sums_are_the_same_bits_in_every_rank() {
        let threads: Vec<_> = meet(4)
            .into_iter()
            .map(|mut ranks| {
                std::thread::spawn(move || {
                    let rank = ranks.rank() as f32;
                    let mut values: Vec<f32> = (0..100_000).map(|at| (at as f32 + 0.1) / (rank + 3.0)).collect();
                    ranks.sum(&mut values).unwrap();
                    let mut few = [rank];
                    ranks.sum(&mut few).unwrap();
                    (values, few)
                })
            })
            .collect();
        let all: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(all.iter().all(|of| *of == all[0]));
        assert_eq!(all[0].1, [6.0]);
        let expected: f32 = (0..4).map(|rank| 7.1 / (rank as f32 + 3.0)).sum();
        assert!((all[0].0[7] - expected).abs() < 1e-5);
    }

    /// A rank that died must end the others at once and by name, and not at the end of the task's deadline.
    #[test]
    fn a_rank_that_is_gone_is_noticed() {
        let mut ranks = meet(3);
        drop(ranks.remove(1));
        let mut first = ranks.remove(0);
        let error = first.sum(&mut [1.0]).unwrap_err();
        assert!(matches!(error, RankError::Lost { rank: 0, other: 1, .. }), "{error}");
    }

    /// Two ranks on different data or images must not add up what does not belong together.
    #[test]
    fn ranks_that_are_out_of_step_are_refused() {
        let mut ranks = meet(2);
        let (mut second, mut first) = (ranks.remove(1), ranks.remove(0));
        let other = std::thread::spawn(move || second.sum(&mut [1.0, 2.0]));
        let error = first.sum(&mut [1.0]).unwrap_err();
        drop(first);
        assert!(
            matches!(error, RankError::OutOfStep { other: 1, .. }) && error.to_string().contains("2 values"),
            "{error}"
        );
        assert!(other.join().unwrap().is_err());
    }
}
