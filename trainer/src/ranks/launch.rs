//! Starting ranks, and ending them together.
//!
//! One that ends before its work is done takes the others with it within a second, with its own exit code: a card that
//! broke must not hold fifteen others until the task's deadline. Being told to stop is passed on by closing a pipe, which
//! also happens when this process is killed.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{EXIT_TERMINATED, TrainerError};

/// How often it is looked whether a rank has ended.
const LOOK: Duration = Duration::from_millis(50);

/// Runs this program again, once for each rank with its arguments and torchrun's variables, and waits for all.
pub fn run(count: usize, stop: &AtomicBool) -> Result<(), TrainerError> {
    let failed = |doing: &str, e: std::io::Error| TrainerError::Files(format!("ranks cannot be {doing}: {e}"));
    let program = std::env::current_exe().map_err(|e| failed("started", e))?;
    // Free now; whoever takes it before rank 0 does makes the task be tried again.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.map_err(|e| failed("given a port", e))?.port();
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::piped());
    command.env("WORLD_SIZE", count.to_string()).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("OMP_NUM_THREADS", (cores / count).max(1).to_string());
    }
    let mut ranks = Running(Vec::new());
    for rank in 0..count {
        let number = rank.to_string();
        let child = command.env("RANK", &number).env("LOCAL_RANK", &number).spawn();
        ranks.0.push(child.map_err(|e| failed("started", e))?);
    }
    ranks.wait(stop)
}

/// Whether this process is a rank that another one started.
pub fn is_rank() -> bool {
    std::env::var_os("WORLD_SIZE").is_some_and(|count| count != "1")
}

/// Sets `stop` when the process that started this rank closes its pipe, or is gone.
pub fn follow(stop: &Arc<AtomicBool>) {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        // Nothing is ever sent: whatever comes of it, the end of the pipe is the word.
        let _ = std::io::stdin().read(&mut [0]);
        stop.store(true, Ordering::Relaxed);
    });
}

/// The ranks; none outlives this.
struct Running(Vec<Child>);

impl Running {
    fn wait(&mut self, stop: &AtomicBool) -> Result<(), TrainerError> {
        let mut stopped = None;
        let mut open: Vec<usize> = (0..self.0.len()).collect();
        while !open.is_empty() {
            if stop.load(Ordering::Relaxed) {
                self.0.iter_mut().for_each(|child| drop(child.stdin.take()));
            }
            let mut still = Vec::new();
            for rank in open {
                let looked = self.0[rank].try_wait();
                match looked.map_err(|e| TrainerError::Files(format!("rank {rank} cannot be waited for: {e}")))? {
                    None => still.push(rank),
                    Some(status) if status.success() => {}
                    // The others are on their way too, and one of them writes the checkpoint.
                    Some(status) if status.code() == Some(EXIT_TERMINATED) => stopped = Some(ended(rank, status)),
                    Some(status) => return Err(ended(rank, status)),
                }
            }
            open = still;
            std::thread::sleep(LOOK);
        }
        stopped.map_or(Ok(()), Err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended is only waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ended(rank: usize, status: ExitStatus) -> TrainerError {
    TrainerError::Rank { rank, code: status.code(), how: format!("ended early ({status})") }
}
