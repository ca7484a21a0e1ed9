//! Writes a small release to the folder given and prints the digests to serve it by, of the release and of the model: for
//! the checks by clients of others (`cargo xtask test --only clients`).

#[path = "bench_serving/release.rs"]
mod release;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: phantom_release FOLDER")?;
    let (release, model) = release::write(folder.as_ref(), 2, 2, [16, 16, 12])?;
    println!("{release} {model}");
    Ok(())
}
