//! Figures of the kernels and of both sides of the protocol, one JSON object per line:
//! `{"bench","case","metric","value","unit","against","ratio","budget","met"}`.
//!
//! `cargo run -p consilium-secagg --example bench -- [kernels|client|hub|all] [--long]`
//!
//! `--long` measures Flower 1.42.0's SecAgg+ beside it at every point (sets up its environment the first time).
mod kernels;
mod peer;
mod report;
mod sides;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (flags, names): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let which = names.first().map_or("all", String::as_str);
    let long = flags.iter().any(|f| f == "--long");
    let wants = |name: &str| which == name || which == "all";
    if !["kernels", "client", "hub", "all"].contains(&which) {
        return Err(format!("unknown bench {which:?}: one of kernels, client, hub, all").into());
    }
    if wants("kernels") {
        kernels::run();
    }
    if wants("client") || wants("hub") {
        sides::run(wants("client"), wants("hub"), long)?;
    }
    Ok(())
}
