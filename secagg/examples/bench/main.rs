//! Figures of the kernels and of both sides of the protocol, one JSON object per line:
//! `{"bench","case","metric","value","unit","against","ratio","budget","met"}`.
//!
//! `cargo run -p consilium-secagg --example bench -- [kernels|client|hub|all]`
mod kernels;
mod report;
mod sides;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let which = std::env::args().nth(1).unwrap_or_else(|| "all".to_owned());
    let wants = |name: &str| which == name || which == "all";
    if !["kernels", "client", "hub", "all"].contains(&which.as_str()) {
        return Err(format!("unknown bench {which:?}: one of kernels, client, hub, all").into());
    }
    if wants("kernels") {
        kernels::run();
    }
    if wants("client") || wants("hub") {
        sides::run(wants("client"), wants("hub"))?;
    }
    Ok(())
}
