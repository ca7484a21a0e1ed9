//! One released model, served by the program that hospitals run and asked over HTTP: how long one scan takes, how many a
//! second four callers get, and the most memory that the server ever had. One JSON object a line:
//! `{"bench","case","metric","value","unit","against","ratio","budget","met"}`.
//!
//! `cargo xtask bench inference`, or with the server's program in `CONSILIUM_INFERENCE`.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use consilium_imaging::phantom::{Profile, phantom};
use consilium_inference::protocol::{HEADER_LENGTH, ask};
use serde_json::json;

mod release;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SHAPE: [usize; 3] = [40, 56, 40];
const MODEL: &str = "phantoms-r1";
const CALLERS: usize = 4;

/// What a radiologist's workstation may wait for, and what a node without a GPU must bear.
const ONE_SCAN_MS: f64 = 45.0;
const SCANS_A_SECOND: f64 = 20.0;
const PEAK_MB: f64 = 400.0;

/// A server that ends with the bench, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Result<()> {
    let scans = if std::env::args().any(|argument| argument == "--long") { 200 } else { 40 };
    let folder = tempfile::tempdir()?;
    let (release, model) = release::write(folder.path(), 8, 3, SHAPE)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let program = std::env::var_os("CONSILIUM_INFERENCE").ok_or("CONSILIUM_INFERENCE names the server's program")?;
    let server = Command::new(program)
        .args(["serve", "--name", MODEL, "--listen", &address.to_string(), "--root"])
        .arg(folder.path())
        .args(["--release-digest", &release.to_string(), "--model-digest", &model.to_string()])
        .stderr(Stdio::null())
        .spawn()?;
    let mut server = Server(server);
    wait_until_ready(&mut server.0, address)?;

    let request = request();
    for _ in 0..3 {
        ask_once(address, &request)?;
    }
    let mut took = Vec::new();
    for _ in 0..scans {
        let began = Instant::now();
        ask_once(address, &request)?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let p50 = took[took.len() / 2];
    print("one scan at a time, p50", p50, "ms", ONE_SCAN_MS / p50, "45 ms");

    let began = Instant::now();
    let failed = thread::scope(|scope| {
        let ask_many = || (0..scans / 2).filter(|_| ask_once(address, &request).is_err()).count();
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(ask_many)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap_or(usize::MAX)).max()
    });
    if failed != Some(0) {
        return Err("some of four callers' requests failed".into());
    }
    let rate = (CALLERS * (scans / 2)) as f64 / began.elapsed().as_secs_f64();
    print("four callers", rate, "scans/s", rate / SCANS_A_SECOND, "20 a second");
    let peak = peak_megabytes(server.0.id())?;
    print("peak memory", peak, "MB", PEAK_MB / peak, "400 MB");
    Ok(())
}

/// A figure whose `ratio` is at least 1 when it is within its bound.
fn print(metric: &str, value: f64, unit: &str, ratio: f64, bound: &str) {
    let line = json!({ "bench": "inference", "case": "unet3d-w8", "metric": metric, "value": value, "unit": unit,
        "against": bound, "ratio": ratio, "budget": 1.0, "met": ratio >= 1.0 });
    println!("{line}");
}

/// A scan as bytes, in a request of its own connection, as clients without a pool send it.
fn request() -> Vec<u8> {
    let (volume, _) = phantom(1, 1, SHAPE, &Profile::of_hospital(0));
    let (body, length) = ask(&volume);
    let head = format!(
        "POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n{HEADER_LENGTH}: {length}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn ask_once(address: SocketAddr, request: &[u8]) -> Result<()> {
    let answer = exchange(address, request)?;
    // The head, and a label for each voxel.
    if answer.starts_with(b"HTTP/1.1 200 ") && answer.len() > SHAPE.iter().product() {
        return Ok(());
    }
    Err(format!("the server said {}", String::from_utf8_lossy(answer.get(..200).unwrap_or(&answer))).into())
}

fn exchange(address: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// The server listens when the model is verified and loaded.
fn wait_until_ready(server: &mut Child, address: SocketAddr) -> Result<()> {
    let ready = b"GET /v2/health/ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
    loop {
        if exchange(address, ready).is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200 ")) {
            return Ok(());
        }
        if let Some(status) = server.try_wait()? {
            return Err(format!("the server ended: {status}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The most memory that a process ever had.
fn peak_megabytes(id: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}
